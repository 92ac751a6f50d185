"""The remote tier: a remote behind a patient caller, a catalogue of what lies there, and a cap."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from random import Random

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, Unreachable
from kdn.machine.memory import allocate
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import Handle
from kdn.store.index.index import Entry
from kdn.store.tiers.remote.calls import RemoteCaller, RemoteCallSettings
from kdn.store.tiers.remote.catalogue import RemoteCatalogue
from kdn.store.tiers.remote.client import Listed, Remote, RemoteChanges
from kdn.store.tiers.remote.entry_bytes import pack_note, read_note
from kdn.store.tiers.remote.link import RemoteLink
from kdn.store.tiers.remote.uploads import Uploads
from kdn.store.tiers.seal import MAX_SEALED_BYTES, NOTE, SEAL_BYTES, KeyRing, is_sealed
from kdn.store.tiers.tier import Changes, Holding, ManagedTier, Spare, TierUsage
from kdn.trace import Trace

__all__ = ["RemoteSettings", "RemoteTier"]

FIRST_BYTES = 16 << 10


@dataclass(frozen=True)
class RemoteSettings:
    """How a remote tier is used."""

    calls: RemoteCallSettings = field(default_factory=RemoteCallSettings)
    capacity_bytes: int | None = None
    """The most bytes to leave there; None means that the remote looks after itself."""
    read_bytes: int = 1 << 20
    """Reads are at least this large, unless the block ends before, and larger over a quick link."""
    poll_s: float = 1.0
    """How old the catalogue may get before the remote is asked for changes; 0 asks at every look."""


class _Fetched(Handle):
    """A block across the network: what was read stays, and reads reach ahead."""

    def __init__(
        self,
        remote: Remote,
        caller: RemoteCaller,
        key: BlockKey,
        head: bytes,
        size: int,
        link: RemoteLink,
    ) -> None:
        if not 0 < size <= MAX_SEALED_BYTES:
            raise CorruptBlock(f"{remote.name} holds {size} bytes as {key}: that is no block")
        if len(head) != min(FIRST_BYTES, size):
            raise LostBlock(f"{remote.name} gave {len(head)} bytes as the first of {size} of {key}")
        self._remote = remote
        self._caller = caller
        self._key = key
        self._link = link
        self._lock = threading.Lock()
        try:
            self.buffer = allocate(size)
        except (MemoryError, OSError) as error:
            raise LostBlock(f"no memory for a block of {size} bytes") from error
        self.buffer[: len(head)] = head
        self._have = [(0, len(head))]
        self.moved_bytes = 0

    def read(self, start: int, stop: int) -> memoryview:
        with self._lock:
            if not self.is_read(start, stop):
                self._fetch(start, stop)
        return self.buffer[start:stop]

    def is_read(self, start: int, stop: int) -> bool:
        return any(a <= start and stop <= b for a, b in self._have)

    @property
    def at_once(self) -> int:
        return self._link.at_once

    def close(self) -> None:
        return

    def _fetch(self, start: int, stop: int) -> None:
        """Read what is missing of [start, stop), and on, until it is enough for a read; much in pieces."""
        start = max([b for a, b in self._have if a <= start <= b], default=start)
        stop = min(max(stop, start + self._link.read_bytes), self.buffer.nbytes)
        while start < stop:
            start = self._fetch_piece(start, min(start + self._link.most_bytes, stop))

    def _fetch_piece(self, start: int, stop: int) -> int:
        """Where the piece ends. Each has a time-out of its own."""
        doing = f"reading block {self._key}"
        try:
            with self._link.reading(stop - start):
                data = self._caller.ask(doing, lambda: self._remote.read(self._key, start, stop))
                if len(data) != stop - start:
                    raise LostBlock(
                        f"{doing}: {self._remote.name} gave {len(data)} of {stop - start} bytes"
                    )
        except Unreachable as error:
            raise LostBlock(str(error)) from error
        self.buffer[start:stop] = data
        self._have = _joined([*self._have, (start, stop)])
        self.moved_bytes = (self.moved_bytes or 0) + stop - start
        return stop


class RemoteTier(ManagedTier):
    """Blocks in a `remote`. What others put there is found after at most `poll_s`, and one look.

    Looking never waits for the remote, but for the first look, which waits `timeout_s` at most.
    Over `capacity_bytes`, what this process has not used for longest goes first.
    """

    trusted = False
    far = True

    def __init__(
        self,
        remote: Remote,
        settings: RemoteSettings,
        clock: Clock,
        trace: Trace,
        rng: Random | None = None,
        ring: KeyRing | None = None,
    ) -> None:
        """With a `ring` blocks and notes leave this machine sealed."""
        self.name = remote.name
        self.transcoder = self if remote.transcodes else None
        self._ring = ring
        self._remote = remote
        self._settings = settings
        self._clock = clock
        self._trace = trace
        self._caller = RemoteCaller(self.name, settings.calls, clock, rng or Random())
        self.link = RemoteLink(settings.read_bytes, settings.calls, clock)
        self._catalogue = RemoteCatalogue(self.name, settings.capacity_bytes)
        self._uploads = Uploads(remote)
        self._evicted = 0
        self._polling = threading.Lock()
        self._polled_s: float | None = None
        self._poll: Future[RemoteChanges] | None = None
        self._takes_in = False
        """Does a thread take in what the poll brought?"""

    def open(self, key: BlockKey) -> Handle | None:
        found = self._head(key, FIRST_BYTES)
        if found is None:
            return None
        head, size_bytes = found
        handle = _Fetched(self._remote, self._caller, key, head, size_bytes, self.link)
        if is_sealed(head) != (self._ring is not None):
            self._catalogue.remove(
                key
            )  # written by a process with other keys: ours may be put again
            raise LostBlock(f"block {key} in {self.name} is not sealed as this store seals blocks")
        return handle if self._ring is None else self._ring.open(key, handle)

    def transcode(
        self, key: BlockKey, start: int, stop: int, codec: str, max_bytes: int
    ) -> bytes | memoryview | None:
        doing = f"reading block {key} as {codec}"
        return self._caller.ask(
            doing, lambda: self._remote.transcode(key, start, stop, codec, max_bytes)
        )

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        if self._uploads.is_leaving(block.key):  # what the remote still answers of it is going
            self._catalogue.remove(block.key)
        try:
            is_there = self._head(block.key, SEAL_BYTES) is not None
        except LostBlock:  # it is there, and cannot be read now
            is_there = True
        if is_there:
            self.touch(block.key)
            return
        entry, data = Entry.of(block.header.id), block.data
        note = pack_note(entry)
        if self._ring is not None:
            data = self._ring.seal(block.key, block.header.id.salt, data)
            note = self._ring.seal_note(block.key, note)
        for victim in self._catalogue.victims(data.nbytes, spare):
            if self.drop(victim):
                self._evicted += 1
                self._trace.event("store.evict", tier=self.name, key=victim)
        doing = f"writing block {block.key}"
        with self._uploads.wanted(block.key):
            self._caller.ask(doing, lambda: self._uploads.write(block.key, note, data))
            self._catalogue.add(entry, data.nbytes)
            if not self._uploads.is_wanted(block.key):  # dropped meanwhile
                self._catalogue.remove(block.key)

    def drop(self, key: BlockKey) -> bool:
        with self._uploads.unwanted(key):
            there = self._caller.ask(f"dropping block {key}", lambda: self._uploads.remove(key))
            if self._uploads.is_wanted(key):  # put again meanwhile
                return there
            return self._catalogue.remove(key) or there

    def holds(self, key: BlockKey) -> bool:
        return key in self._catalogue

    def is_reachable(self) -> bool:
        return self._caller.is_open

    def changes(self) -> Changes:
        self._ask_for_changes()
        return self._catalogue.changes()

    def usage(self) -> TierUsage:
        return self._catalogue.usage(self._evicted)

    def touch(self, key: BlockKey) -> None:
        self._catalogue.touch(key)

    def block_keys(self) -> Iterator[BlockKey]:
        return iter(self._catalogue.keys())

    def coming_keys(self) -> list[BlockKey]:
        return self._uploads.keys()

    def holdings(self, salt: str) -> Sequence[Holding]:
        return self._catalogue.holdings(salt)

    def check(self) -> None:
        self._catalogue.check()

    def close(self) -> None:
        self._caller.close()
        self._remote.close()

    def _head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        """How a known block begins, and its size. One that the remote lost is known no more."""
        if not self.holds(key):
            return None
        doing = f"opening block {key}"
        found = self._caller.ask(doing, lambda: self._remote.head(key, num_bytes))
        if found is None:
            self._catalogue.remove(key)
        return found

    def _ask_for_changes(self) -> None:
        """Ask if it is time; take in what has come. Raises Unreachable when asking failed."""
        settings = self._settings
        with self._polling:
            if self._poll is None and self._is_due():
                first = self._polled_s is None
                self._polled_s = self._clock.now()
                if not self._caller.is_open:
                    return
                self._catalogue.begin_listing()
                self._poll = self._caller.start(f"changes of {self.name}", self._remote.changes)
                if first or settings.poll_s == 0:
                    wait((self._poll,), settings.calls.timeout_s)
            poll = self._poll
            if poll is None or self._takes_in or not poll.done():
                return
            self._takes_in = True
        try:
            if not poll.cancelled():
                self._take_in(self._caller.finish(f"changes of {self.name}", poll))
        finally:  # only now: the next listing forgets what was added since this one began
            with self._polling:
                self._poll, self._takes_in = None, False

    def _is_due(self) -> bool:
        polled_s = self._polled_s
        return polled_s is None or self._clock.now() - polled_s >= self._settings.poll_s

    def _take_in(self, changes: RemoteChanges) -> None:
        for key in changes.removed:
            self._catalogue.remove(key)
        if changes.whole:
            self._catalogue.retain(one.key for one in changes.added)
        if changes.foreign:
            self._trace.event("store.foreign", tier=self.name, count=changes.foreign)
        for one in changes.added:
            if one.key in self._catalogue:
                continue
            entry = self._read(one)
            if entry is None:
                reason = f"{self.name}: bad note"
                self._trace.event("store.unreadable", key=one.key, reason=reason)
            else:
                self._catalogue.add(entry, one.size_bytes)

    def _read(self, listed: Listed) -> Entry | None:
        if listed.note.startswith(NOTE) != (self._ring is not None):
            return None
        if self._ring is None:
            return read_note(listed.key, listed.note)
        note = self._ring.open_note(listed.key, listed.note)
        return None if note is None else read_note(listed.key, note)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, ascending, with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
