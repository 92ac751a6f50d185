"""What operators decide while the store is open: quotas and priorities of tenants, and pins that outlive
the process.

Decisions lie in files of the store's folder, so that every process on it follows them; limits stand before
what the settings say.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import BadInput
from kdn.machine.files import locked, publish_file, system_errors

__all__ = ["PersistentPins", "SharedFile", "TenantLimits", "TenantsLimits"]

LOOK_EVERY_S = 1.0

T = TypeVar("T")


class SharedFile(Generic[T]):
    """A small JSON object by name, in a file that the processes on a folder share; None: in memory only.

    Safe from several threads and processes: another process's change is seen within a second, or when
    the clock has gone back.  A file that cannot be read holds nothing.
    """

    def __init__(
        self, path: Path | None, decoder: msgspec.json.Decoder[dict[str, T]], clock: Clock
    ) -> None:
        self._path = path
        self._decoder = decoder
        self._clock = clock
        self._lock = threading.Lock()
        self._values: dict[str, T] = {}
        self._looked_s: float | None = None
        self._stamp: tuple[int, int] | None = None

    def read(self) -> Mapping[str, T]:
        """What the file holds, at most a second old."""
        now_s, looked_s = self._clock.now(), self._looked_s
        if looked_s is None or not 0 <= now_s - looked_s < LOOK_EVERY_S:
            with self._lock:
                self._looked_s = now_s
                self._look()
        return self._values

    @contextmanager
    def changing(self) -> Iterator[dict[str, T]]:
        """A copy of what is there now, which becomes the file's when the block ends well."""
        with self._lock:
            if self._path is None:
                values = dict(self._values)
                yield values
                self._values = values
                return
            lock = self._path.with_suffix(".lock")
            with system_errors(f"changing {self._path}"), locked(lock):
                self._look()
                values = dict(self._values)
                yield values
                publish_file(self._path, msgspec.json.encode(values))
                self._values, self._stamp = values, self._stat(self._path)

    def _look(self) -> None:
        if self._path is None:
            return
        try:
            stamp = self._stat(self._path)
            if stamp != self._stamp:
                self._values = self._decoder.decode(self._path.read_bytes())
                self._stamp = stamp
        except (OSError, msgspec.MsgspecError, RecursionError):
            self._values, self._stamp = {}, None

    @staticmethod
    def _stat(path: Path) -> tuple[int, int]:
        """Changes whenever the file is published again: each is a new file."""
        found = path.stat()
        return found.st_mtime_ns, found.st_ino


class TenantLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided about one tenant; None leaves it to the settings."""

    quota_bytes: int | None = None
    priority: int | None = None


class TenantsLimits:
    """Decisions by salt, in the folder's `limits.json`."""

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        path = None if folder is None else folder / "limits.json"
        self._file = SharedFile(path, msgspec.json.Decoder(dict[str, TenantLimits]), clock)

    def of(self, salt: str) -> TenantLimits:
        """What was decided about that tenant."""
        return self._file.read().get(salt, _UNDECIDED)

    def all(self) -> Mapping[str, TenantLimits]:
        """Everything decided, by salt."""
        return self._file.read()

    def decide(self, salt: str, change: TenantLimits) -> TenantLimits:
        """Change what `change` speaks of, and return all that holds now. Raises BadInput."""
        if change.quota_bytes is not None and change.quota_bytes < 0:
            raise BadInput(f"a quota of {change.quota_bytes} bytes: give 0 or more")
        with self._file.changing() as limits:
            old = limits.get(salt, _UNDECIDED)
            quota = old.quota_bytes if change.quota_bytes is None else change.quota_bytes
            priority = old.priority if change.priority is None else change.priority
            limits[salt] = TenantLimits(quota, priority)
            return limits[salt]

    def forget(self, salt: str) -> bool:
        """Leave that tenant to the settings again; False when nothing was decided."""
        with self._file.changing() as limits:
            return limits.pop(salt, None) is not None


_UNDECIDED = TenantLimits()


class PersistentPins:
    """Keys with an expiry (seconds since the epoch; None: never), in the folder's `pins.json`.

    A pinned block is evicted by no kdn on this folder, until it expires.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._clock = clock
        path = None if folder is None else folder / "pins.json"
        self._file = SharedFile(path, msgspec.json.Decoder(dict[str, float | None]), clock)

    def __contains__(self, key: BlockKey) -> bool:
        return self._is_pinned(self._file.read().get(key, 0.0))

    def pin(self, keys: Iterable[BlockKey], until_s: float | None) -> None:
        """Pin these; a later pin's expiry replaces an earlier one's."""
        with self._file.changing() as pins:
            pins.update(dict.fromkeys(keys, until_s))
            self._drop_expired(pins)

    def unpin(self, keys: Iterable[BlockKey]) -> int:
        """Let these be evicted again; how many of them were pinned."""
        with self._file.changing() as pins:
            self._drop_expired(pins)
            found = [key for key in dict.fromkeys(keys) if key in pins]
            for key in found:
                del pins[key]
            return len(found)

    def all(self) -> dict[BlockKey, float | None]:
        """Every pin that holds, and until when."""
        pins = self._file.read().items()
        return {BlockKey(key): until for key, until in pins if self._is_pinned(until)}

    def _drop_expired(self, pins: dict[str, float | None]) -> None:
        for key in [key for key, until in pins.items() if not self._is_pinned(until)]:
            del pins[key]

    def _is_pinned(self, until_s: float | None) -> bool:
        return until_s is None or until_s > self._clock.wall()
