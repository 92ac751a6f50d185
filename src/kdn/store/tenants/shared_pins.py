"""Pins that outlive the process: blocks that no kdn on this folder evicts, until they expire."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.machine.files import locked, system_errors

__all__ = ["PersistentPins"]

LOOK_EVERY_S = 1.0


class PersistentPins:
    """Keys with an expiry (seconds since the epoch; None: never), in a file of the store's folder.

    Safe from several threads and processes: another process's pin holds here within a second.
    Without a folder pins last as long as the process.  A file that cannot be read pins nothing.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._path = None if folder is None else folder / "pins.json"
        self._clock = clock
        self._lock = threading.Lock()
        self._pins: dict[str, float | None] = {}
        self._looked_s: float | None = None
        self._stamp: int | None = None

    def __contains__(self, key: BlockKey) -> bool:
        return self._is_pinned(self._current().get(key, 0.0))

    def pin(self, keys: Iterable[BlockKey], until_s: float | None) -> None:
        """Keep these; a later pin's expiry replaces an earlier one's."""
        with self._changing() as pins:
            pins.update(dict.fromkeys(keys, until_s))

    def unpin(self, keys: Iterable[BlockKey]) -> int:
        """Let these go again; how many of them were pinned."""
        with self._changing() as pins:
            return sum(self._is_pinned(pins.pop(key, 0.0)) for key in keys)

    def all(self) -> dict[BlockKey, float | None]:
        """Every pin that holds, and until when."""
        current = self._current().items()
        return {BlockKey(key): until for key, until in current if self._is_pinned(until)}

    def _is_pinned(self, until_s: float | None) -> bool:
        return until_s is None or until_s > self._clock.wall()

    def _current(self) -> dict[str, float | None]:
        with self._lock:
            now = self._clock.now()
            if self._looked_s is None or now - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = now
                self._look()
            return dict(self._pins) if self._pins else {}

    def _look(self) -> None:
        if self._path is None:
            return
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._pins = msgspec.json.decode(
                    self._path.read_bytes(), type=dict[str, float | None]
                )
                self._stamp = stamp
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            self._pins, self._stamp = {}, None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, float | None]]:
        """The pins as they are now, written back whole when the block ends well."""
        with self._lock:
            if self._path is None:
                yield self._pins
                return
            with (
                system_errors(f"changing the pins {self._path}"),
                locked(self._path.with_name("pins.lock")),
            ):
                self._look()
                pins = {key: until for key, until in self._pins.items() if self._is_pinned(until)}
                yield pins
                temporary = self._path.with_name(f"pins.{os.getpid()}.tmp")
                temporary.write_bytes(msgspec.json.encode(pins))
                temporary.replace(self._path)
                self._pins, self._stamp = pins, self._path.stat().st_mtime_ns
