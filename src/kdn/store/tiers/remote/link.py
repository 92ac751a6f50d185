"""The way to a remote: how quick it is, and how it is best read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdn.clock import Clock
from kdn.store.links import Links
from kdn.store.tiers.remote.calls import RemoteCallSettings

__all__ = ["RemoteLink"]

_READ_S = 0.02
"""How long a read is to take at least: what a round trip and a request cost is then a small part."""
_MOST_BYTES = 1 << 20
_READ_WITHIN = 0.25
"""Reads side by side share the link: each is to take no more than this part of its time-out."""


class RemoteLink:
    """Measures the reads from one remote. Safe from several threads."""

    def __init__(self, least_bytes: int, calls: RemoteCallSettings, clock: Clock) -> None:
        """Reads ask for `least_bytes` at least."""
        self._least_bytes = least_bytes
        self._calls = calls
        self._links = Links(clock)

    @contextmanager
    def reading(self, num_bytes: int) -> Iterator[None]:
        """A read of so many bytes. After one that fails the speed is not known any more: it may have been too
        much at once for a link that became slow."""
        try:
            with self._links.side_by_side("", lambda: num_bytes):
                yield
        except BaseException:
            self._links.forget("")
            raise

    @property
    def read_bytes(self) -> int:
        """What the next read is to ask for at least: more over a quick link."""
        return max(self._least_bytes, int(self._bytes_per_s * _READ_S))

    @property
    def most_bytes(self) -> int:
        """What one read asks for at most: what is wanted beyond it has a read, and a time-out, of its own."""
        return max(self.read_bytes, _MOST_BYTES)

    @property
    def at_once(self) -> int:
        """How many reads go side by side: one until a read has shown the speed, and over a slow link."""
        fitting = self._bytes_per_s * _READ_WITHIN * self._calls.timeout_s / self.most_bytes
        return max(1, min(int(fitting), self._calls.workers))

    @property
    def _bytes_per_s(self) -> float:
        return self._links.bytes_per_s("") or 0.0
