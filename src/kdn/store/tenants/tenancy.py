"""What tenants may store: limits, quotas and pins, and room in a tier at their own blocks' cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import BadInput, NoSpace
from kdn.machine.files import locked, publish_file, system_errors
from kdn.store.block.format import EncodedBlock
from kdn.store.tiers.tier import Holding, ManagedTier
from kdn.trace import Trace

__all__ = [
    "PersistentPins",
    "Pins",
    "Quotas",
    "SharedFile",
    "Tenancy",
    "TenantLimits",
    "TenantsLimits",
    "over_quota",
]


LOOK_EVERY_S = 1.0

T = TypeVar("T")


class SharedFile(Generic[T]):
    """A small JSON object by name, in a file that the processes on a folder share; None: in memory only.

    Safe from several threads and processes: another process's change is seen within a second, or when
    the clock has gone back.  A missing or damaged file holds nothing.  While the device refuses to read the
    file, what was known stays, and nothing can be changed: a change would drop what could not be read.
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
        self.is_known = path is None
        """Has the file been read, or found missing, since the opening?"""

    def read(self) -> Mapping[str, T]:
        """What the file holds, at most a second old."""
        now_s, looked_s = self._clock.now(), self._looked_s
        if looked_s is None or not 0 <= now_s - looked_s < LOOK_EVERY_S:
            with self._lock, suppress(OSError):
                self._looked_s = now_s
                self._look()
        return self._values

    @contextmanager
    def changing(self) -> Iterator[dict[str, T]]:
        """A copy of what is there now, which becomes the file's when the block ends well.

        Raises StoreError, and changes nothing, while the file can be neither read nor written.
        """
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
        """Raises OSError when the device refuses."""
        if self._path is None:
            return
        try:
            stamp = self._stat(self._path)
            if stamp != self._stamp:
                self._values = self._decoder.decode(self._path.read_bytes())
                self._stamp = stamp
        except (FileNotFoundError, ValueError, msgspec.MsgspecError, RecursionError):
            self._values, self._stamp = {}, None
        self.is_known = True

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
        if change == _UNDECIDED:
            raise BadInput("say what is decided about the tenant: a limit in bytes or a priority")
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
        """While the pins cannot be read, every block counts as pinned: room is found without them, or not."""
        until_s = self._file.read().get(key, 0.0)
        return self._is_pinned(until_s) or not self._file.is_known

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


@dataclass(frozen=True)
class Quotas:
    """Bytes by salt; `default_bytes` holds for those not named. None is no limit."""

    default_bytes: int | None = None
    by_salt: Mapping[str, int] = field(default_factory=dict)

    def limit(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier."""
        return self.by_salt.get(salt, self.default_bytes)

    def __bool__(self) -> bool:
        return self.default_bytes is not None or bool(self.by_salt)


class Pins:
    """Counts, per key, how many readers hold it. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[BlockKey] = Counter()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._counts

    def hold(self, key: BlockKey) -> None:
        with self._lock:
            self._counts[key] += 1

    def release(self, key: BlockKey) -> None:
        with self._lock:
            assert self._counts[key] > 0, f"{key} was released more often than held"
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


class Tenancy:
    """Who may hold how much in any one tier, and which blocks may not go. Safe from several threads."""

    def __init__(
        self, quotas: Quotas, limits: TenantsLimits, persistent_pins: PersistentPins, trace: Trace
    ) -> None:
        """What `limits` decides stands before the settings in `quotas`."""
        self.quotas = quotas
        self.limits = limits
        self.pins = Pins()
        """Blocks that this process reads just now."""
        self.persistent_pins = persistent_pins
        self._trace = trace
        self._locks: dict[str, threading.Lock] = {}
        """By tier: while one waits for its network or device, blocks get into the others."""

    def spares(self, key: BlockKey) -> bool:
        """Is the block being read, or pinned?"""
        return key in self.pins or key in self.persistent_pins

    def quota_of(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier: as decided, or else as set."""
        decided = self.limits.of(salt).quota_bytes
        return self.quotas.limit(salt) if decided is None else decided

    def put_into(self, tier: ManagedTier, block: EncodedBlock) -> None:
        """Store a block in one tier, within its tenant's quota. Raises NoSpace, StoreError."""
        salt = block.header.id.salt
        limit = self.quota_of(salt)
        if limit is None or tier.holds(block.key):
            tier.put(block, self.spares)
            return
        with self._locks.setdefault(tier.name, threading.Lock()):
            held = tier.holdings(salt)
            spared = {one.key for one in held if self.spares(one.key)}
            for key in over_quota(salt, limit, block.size_bytes, held, spared):
                tier.drop(key)
                self._trace.event("store.evict", tier=tier.name, key=key, reason="quota")
            tier.put(block, self.spares)


def over_quota(
    salt: str, limit: int, size_bytes: int, held: Sequence[Holding], spared: set[BlockKey]
) -> list[BlockKey]:
    """Which of the tenant's own blocks (oldest use first) go, so that `size_bytes` more fit.

    A tenant pays with its own blocks only, and with those whose size is known.  Raises NoSpace when even
    that is not enough.
    """
    excess = sum(one.size_bytes for one in held) + size_bytes - limit
    going = []
    for one in held:
        if excess <= 0:
            break
        if one.size_bytes and one.key not in spared:
            going.append(one.key)
            excess -= one.size_bytes
    if excess > 0:
        raise NoSpace(
            f"a block of {size_bytes} bytes does not fit in the quota of {limit} bytes that tenant"
            f" {salt!r} has, beside what is in use or pinned: raise the quota, or unpin"
        )
    return going
