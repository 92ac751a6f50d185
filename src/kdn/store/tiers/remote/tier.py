"""The remote tier: a remote with patience, a book of what lies there, and a cap."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from random import Random

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, NoSpace, Unreachable
from kdn.machine.memory import allocate
from kdn.store.block.format import MAX_BLOCK_BYTES, EncodedBlock
from kdn.store.index.index import Entry
from kdn.store.tenants.quotas import Holding
from kdn.store.tiers.remote.calls import RemoteCaller, RemoteCallSettings
from kdn.store.tiers.remote.client import Listed, Remote, RemoteChanges
from kdn.store.tiers.remote.entry_bytes import pack_note, read_note
from kdn.store.tiers.seal import NOTE, KeyRing, is_sealed
from kdn.store.tiers.tier import Changes, Handle, Spare, Tier, TierUsage
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
    """Reads are at least this large, unless the block ends before: a round trip should pay."""
    poll_s: float = 1.0
    """How old the book may get before the remote is asked for news; 0 asks at every look."""


class _Fetched(Handle):
    """A block across the network: what was read stays, and reads reach ahead."""

    def __init__(
        self,
        remote: Remote,
        line: RemoteCaller,
        key: BlockKey,
        head: bytes,
        size: int,
        read_bytes: int,
    ) -> None:
        if size > MAX_BLOCK_BYTES:
            raise CorruptBlock(f"{remote.name} holds {size} bytes as {key}: that is no block")
        self._remote = remote
        self._caller = line
        self._key = key
        self._read_bytes = read_bytes
        self._lock = threading.Lock()
        self.buffer = allocate(size)
        self.buffer[: len(head)] = head
        self._have = [(0, len(head))]
        self.moved_bytes = 0

    def read(self, start: int, stop: int) -> memoryview:
        with self._lock:
            if not self.is_at_hand(start, stop):
                self._fetch(start, stop)
        return self.buffer[start:stop]

    def is_at_hand(self, start: int, stop: int) -> bool:
        return any(a <= start and stop <= b for a, b in self._have)

    def close(self) -> None:
        return

    def _fetch(self, start: int, stop: int) -> None:
        """Read what is missing of [start, stop), and on, until the read is large enough."""
        start = max([b for a, b in self._have if a <= start <= b], default=start)
        stop = min(max(stop, start + self._read_bytes), self.buffer.nbytes)
        doing = f"reading block {self._key}"
        try:
            data = self._caller.ask(doing, lambda: self._remote.read(self._key, start, stop))
        except Unreachable as error:
            raise LostBlock(str(error)) from error
        if len(data) != stop - start:
            raise LostBlock(
                f"{doing}: {self._remote.name} gave {len(data)} of {stop - start} bytes"
            )
        self.buffer[start:stop] = data
        self._have = _joined([*self._have, (start, stop)])
        self.moved_bytes = (self.moved_bytes or 0) + stop - start


class RemoteTier(Tier):
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
        self.transcodes = remote.transcodes
        self._ring = ring
        self._remote = remote
        self._settings = settings
        self._clock = clock
        self._trace = trace
        self._caller = RemoteCaller(self.name, settings.calls, clock, rng or Random())
        self._lock = threading.Lock()
        self._catalogue: OrderedDict[BlockKey, tuple[Entry, int]] = OrderedDict()
        self._size_bytes = 0
        self._evicted = 0
        self._added: list[Entry] = []
        self._removed: list[BlockKey] = []
        self._asked_s: float | None = None
        self._asking: Future[RemoteChanges] | None = None

    def open(self, key: BlockKey) -> Handle | None:
        if not self.holds(key):
            return None
        found = self._caller.ask(
            f"opening block {key}", lambda: self._remote.head(key, FIRST_BYTES)
        )
        if found is None:
            self._note_gone(key)
            return None
        head, size_bytes = found
        reach = self._settings.read_bytes
        handle = _Fetched(self._remote, self._caller, key, head, size_bytes, reach)
        if not is_sealed(head):
            return handle
        if self._ring is None:
            raise LostBlock(f"block {key} in {self.name} is sealed: this store has no keys")
        return self._ring.open(key, handle)

    def transcode(self, key: BlockKey, start: int, stop: int, codec: str) -> bytes | None:
        doing = f"reading block {key} as {codec}"
        return self._caller.ask(doing, lambda: self._remote.layers(key, start, stop, codec))

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        if self.holds(block.key):
            self.touch(block.key)
            return
        salt, data, note = block.header.id.salt, block.data, pack_note(Entry.of(block.header.id))
        if self._ring is not None:
            data = self._ring.seal(block.key, salt, data)
            note = self._ring.seal_note(block.key, note)
        for victim in self._victims(data.nbytes, spare):
            if self.drop(victim):
                self._evicted += 1
                self._trace.event("store.evict", tier=self.name, key=victim)
        self._caller.ask(
            f"writing block {block.key}", lambda: self._remote.write(block.key, note, data)
        )
        with self._lock:
            self._note(Entry.of(block.header.id), data.nbytes)

    def drop(self, key: BlockKey) -> bool:
        there = self._caller.ask(f"dropping block {key}", lambda: self._remote.remove(key))
        return self._note_gone(key) or there

    def holds(self, key: BlockKey) -> bool:
        return key in self._catalogue

    def reachable(self) -> bool:
        return self._caller.is_open

    def changes(self) -> Changes:
        self._ask_for_news()
        with self._lock:
            changes = Changes(tuple(self._added), tuple(self._removed))
            self._added.clear()
            self._removed.clear()
        return changes

    def usage(self) -> TierUsage:
        with self._lock:
            tokens = sum(entry.num_tokens for entry, _ in self._catalogue.values())
            capacity = self._settings.capacity_bytes
            return TierUsage(
                len(self._catalogue), tokens, self._size_bytes, capacity, self._evicted
            )

    def touch(self, key: BlockKey) -> None:
        with self._lock:
            if key in self._catalogue:
                self._catalogue.move_to_end(key)

    def block_keys(self) -> Iterator[BlockKey]:
        with self._lock:
            return iter(tuple(self._catalogue))

    def holdings(self, salt: str) -> Sequence[Holding]:
        with self._lock:
            book = [(k, size) for k, (e, size) in self._catalogue.items() if e.family.salt == salt]
        return [Holding(key, size_bytes) for key, size_bytes in book]

    def check(self) -> None:
        with self._lock:
            sizes = sum(size for _, size in self._catalogue.values())
            assert sizes == self._size_bytes, f"{self.name}: {sizes} bytes, not {self._size_bytes}"

    def close(self) -> None:
        self._caller.close()
        self._remote.close()

    # --- the book ---

    def _ask_for_news(self) -> None:
        """Ask if it is time; take in what has come. Raises Unreachable when asking failed."""
        settings = self._settings
        if self._asking is None and self._is_due():
            first = self._asked_s is None
            self._asked_s = self._clock.now()
            if not self._caller.is_open:
                return
            self._asking = self._caller.start(self._remote.changes)
            if first or settings.poll_s == 0:
                wait((self._asking,), settings.calls.timeout_s)
        asking = self._asking
        if asking is not None and asking.done():
            self._asking = None
            if not asking.cancelled():
                self._take_in(self._caller.ask(f"news of {self.name}", asking.result))

    def _is_due(self) -> bool:
        asked_s = self._asked_s
        return asked_s is None or self._clock.now() - asked_s >= self._settings.poll_s

    def _take_in(self, news: RemoteChanges) -> None:
        with self._lock:
            for key in news.removed:
                self._forget(key)
            if news.whole:
                listed = {one.key for one in news.added}
                for key in [key for key in self._catalogue if key not in listed]:
                    self._forget(key)
            for one in news.added:
                self._learn(one)

    def _learn(self, listed: Listed) -> None:
        if listed.key in self._catalogue:
            return
        entry = self._read(listed)
        if entry is None:
            self._trace.event("store.unreadable", key=listed.key, reason=f"{self.name}: bad note")
        else:
            self._note(entry, listed.size_bytes)

    def _read(self, listed: Listed) -> Entry | None:
        note: bytes | None = listed.note
        if listed.note.startswith(NOTE):
            note = None if self._ring is None else self._ring.open_note(listed.key, listed.note)
        return None if note is None else read_note(listed.key, note)

    def _note(self, entry: Entry, size_bytes: int) -> None:
        self._forget(entry.key)
        self._catalogue[entry.key] = (entry, size_bytes)
        self._size_bytes += size_bytes
        self._added.append(entry)

    def _note_gone(self, key: BlockKey) -> bool:
        with self._lock:
            return self._forget(key)

    def _forget(self, key: BlockKey) -> bool:
        found = self._catalogue.pop(key, None)
        if found is None:
            return False
        self._size_bytes -= found[1]
        self._removed.append(key)
        return True

    def _victims(self, size_bytes: int, spare: Spare) -> list[BlockKey]:
        capacity = self._settings.capacity_bytes
        if capacity is None:
            return []
        with self._lock:
            excess = self._size_bytes + size_bytes - capacity
            victims = []
            for key, (_, held_bytes) in self._catalogue.items():
                if excess <= 0:
                    break
                if not spare(key):
                    victims.append(key)
                    excess -= held_bytes
        if excess > 0:
            raise NoSpace(
                f"a block of {size_bytes} bytes does not fit under the {capacity} bytes allowed in"
                f" {self.name} beside what is in use: allow more"
            )
        return victims


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, ascending, with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
