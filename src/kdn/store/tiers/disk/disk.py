"""The disk tier: one file a block, under a cap that holds for every process on the folder.

    put ─> the policy may refuse the block ─> room is reserved under the cap; others go for it
        ─> the file is written ─> it gets its name, and its row in the catalogue

A full folder evicts; where nothing more may go, and where the device itself is full, `put` raises NoSpace:
the reservation is given back, nothing half-written is left, and the block is not stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import NoSpace, StoreError
from kdn.machine.files import Files, system_errors
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import Handle
from kdn.store.index.index import Entry
from kdn.store.policies import EvictionPolicy, Use
from kdn.store.tiers.disk.block_files import BlockFiles, StoreFolder
from kdn.store.tiers.disk.catalogue import Catalogue, Victim
from kdn.store.tiers.disk.marker import is_store
from kdn.store.tiers.disk.ranked import RankedBlocks
from kdn.store.tiers.disk.read_only import ReadOnlyBlockFiles, ReadOnlyFolder
from kdn.store.tiers.disk.reconcile import forget_vanished, open_catalogue, settle
from kdn.store.tiers.disk.sealing import check_seal
from kdn.store.tiers.seal import KeyRing
from kdn.store.tiers.tier import BlockLife, Changes, Holding, ManagedTier, Spare, TierUsage
from kdn.trace import Trace

__all__ = ["DiskTier", "fit_capacity"]

MOST_BYTES = 20 * 10**9


def fit_capacity(
    catalogue: Catalogue,
    folder: Path,
    asked: int | None,
    spare: Spare,
    evict: Callable[[Victim], None],
) -> int:
    """The cap. One that is asked for is remembered, and what exceeds it evicted immediately, except
    what `spare` names.

    None takes the one that was last asked for: a process that only looks evicts nothing of a server's.
    Without any it is 20 GB, or a tenth of what is free, whichever is less; what the store holds
    counts as free, or every opening would make it smaller.
    """
    if asked is not None:
        catalogue.writer.set_capacity(asked, spare, evict)
        return asked
    remembered = catalogue.reader.capacity_bytes()
    if remembered is not None:
        return remembered
    held_bytes = catalogue.reader.refresh_totals().size_bytes
    with system_errors(f"looking for free space at {folder}"):
        free_bytes = shutil.disk_usage(folder).free + held_bytes
    return min(MOST_BYTES, free_bytes // 10)


def _use_of(block: EncodedBlock) -> Use:
    name = block.header.id
    return Use(block.key, name.start, name.num_tokens, block.size_bytes, 0.0, name.salt)


class DiskTier(ManagedTier):
    """Blocks in `folder`, at most `capacity_bytes` of files at any time.

    None means the cap that was last given for this folder, or that of `fit_capacity`.  The catalogue,
    about 1.5 KB a block, comes on top.  While blocks that were `pinned` at the opening alone take more,
    nothing new is stored.

    A put block survives a power cut.  Another process may evict what this one pins; a block that
    is open can be read to its end all the same.  Opening brings the catalogue up to date with the
    files that are there; it raises ForeignStore or StoreError when the folder cannot be used.  A store that
    cannot be written is read all the same: putting and dropping raise NoSpace.
    """

    name = "disk"
    trusted = False

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int | None,
        clock: Clock,
        trace: Trace,
        policy: EvictionPolicy | None = None,
        ring: KeyRing | None = None,
        *,
        direct: bool = False,
        pinned: Spare | None = None,
        files: Files | None = None,
    ) -> None:
        """`policy` None is least recently used, over all processes; it belongs to the tier.

        With a `ring` files are sealed, and the catalogue's tokens veiled: a folder is sealed with one key
        from its first block on, or not at all, and is refused with any other.  `direct` reads past the
        operating system's cache, where the file system can.  What is `pinned` outlasts a lower cap.
        """
        files = files or Files()
        if files.takes_writes(folder) or not is_store(folder):
            self._folder, of_folder = StoreFolder(folder, files), BlockFiles
        else:
            self._folder, of_folder, policy = ReadOnlyFolder(folder), ReadOnlyBlockFiles, None
            trace.event("store.read_only", reason=self._folder.read_only)
        self.read_only = self._folder.read_only
        self._blocks = of_folder(self._folder, files, ring, trace, direct=direct)
        self._clock = clock
        self._trace = trace
        self._evicted = 0
        veil = None if ring is None else ring.veil
        with self._folder.opening(), ExitStack() as undo:
            check_seal(self._folder, files, ring)
            living = self._folder.sweep()
            self._folder.register()
            undo.callback(self._folder.unregister)
            self._catalogue = open_catalogue(self._folder, self._blocks, living, clock, trace, veil)
            undo.callback(self._catalogue.close)
            self._ranked = None if policy is None else RankedBlocks(policy, clock)
            if self._ranked is not None:
                self._ranked.learn(self._catalogue.reader.uses())
                self._catalogue.writer.rank_by(self._ranked.victims)
            asked = None if self._folder.read_only else capacity_bytes
            spare = pinned or (lambda _: False)
            self._capacity_bytes = fit_capacity(self._catalogue, folder, asked, spare, self._evict)
            held_bytes = self._catalogue.reader.refresh_totals().size_bytes
            self._most_bytes = max(self._capacity_bytes, held_bytes)
            undo.pop_all()

    def open(self, key: BlockKey) -> Handle | None:
        if not self.holds(key):
            return None
        try:
            return self._blocks.open(key)
        except FileNotFoundError:
            forget_vanished(self._catalogue, self._blocks, key, self._trace)
            return None

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        if self.holds(block.key) and self._blocks.exists(block.key):
            self.touch(block.key)
            return
        use = _use_of(block)
        self._judge(use)
        self.replace(block, spare)
        if self._ranked is not None:
            self._ranked.insert(use)

    def drop(self, key: BlockKey) -> bool:
        self._folder.refuse_changes()
        self._unrank(key)
        return self._catalogue.writer.remove(key, lambda: self._blocks.remove(key))

    def holds(self, key: BlockKey) -> bool:
        return self._catalogue.reader.knows(key)

    def changes(self) -> Changes:
        if self._ranked is None:
            return self._catalogue.reader.changes()
        for key in self._ranked.expired():
            self.drop(key)
        changes = self._catalogue.reader.changes()
        for key in changes.removed:
            self._ranked.forget(key)
        if self._ranked.unknown(entry.key for entry in changes.added):
            self._ranked.learn(self._catalogue.reader.uses())
        return changes

    def usage(self) -> TierUsage:
        totals = self._catalogue.reader.totals
        return TierUsage(
            totals.blocks,
            totals.tokens,
            totals.size_bytes,
            self._capacity_bytes,
            self._evicted,
        )

    def touch(self, key: BlockKey) -> None:
        self._catalogue.writer.touch(key)
        if self._ranked is not None:
            self._ranked.touch(key)

    def quarantine(self, key: BlockKey) -> None:
        self._unrank(key)
        if not self._blocks.exists(
            key
        ):  # a folder, a pipe or a link in its place is not ours to move
            forget_vanished(self._catalogue, self._blocks, key, self._trace)
            return
        self._catalogue.writer.quarantine(key, lambda: self._blocks.set_aside(key))

    def save(self) -> None:
        self._catalogue.writer.save()

    def close(self) -> None:
        try:
            self._catalogue.close()
        finally:
            self._folder.unregister()

    # --- what operators do ---

    def block_keys(self) -> Iterator[BlockKey]:
        return iter(self._catalogue.reader.keys())

    def holdings(self, salt: str) -> Sequence[Holding]:
        self.save()
        return self._catalogue.reader.holdings(salt)

    def lives_by_key(self) -> dict[BlockKey, BlockLife]:
        unsaved = self._catalogue.writer.unsaved_uses()
        return self._catalogue.reader.lives_by_key(self._clock.wall(), unsaved)

    def left_keys(self) -> frozenset[BlockKey]:
        return self._catalogue.reader.left_keys()

    def replace(self, block: EncodedBlock, spare: Spare) -> None:
        """One file takes the other's place: a reader finds either of them, whole, also where it fails."""
        self._folder.refuse_changes()
        entry, data = Entry.of(block.header.id), self._blocks.stored_form(block)
        writer = self._catalogue.writer
        number = writer.reserve(
            data.nbytes,
            self._capacity_bytes,
            lambda key: key == block.key or spare(key),
            self._evict,
        )
        try:
            self._blocks.write(data, number)
            place = partial(self._blocks.publish, block.key, number)
            writer.publish(number, entry, data.nbytes, place=place)
        except BaseException:
            # Neither the reservation nor a file that no row counts outlives a write that failed.
            self._blocks.withdraw(number)
            with suppress(StoreError):  # else the next opening does it
                settle(self._catalogue, self._blocks, block.key)
                writer.cancel(number)
            raise

    def check(self) -> None:
        self._catalogue.writer.check()
        if self._ranked is not None:
            self._ranked.check()
        rows, files = set(self._catalogue.reader.keys()), set(self._blocks.sizes())
        assert rows == files, f"rows without a file, or files without a row: {rows ^ files}"
        sizes = sum(path.stat().st_size for path in self._folder.files())
        recorded = self._catalogue.reader.refresh_totals().size_bytes
        assert sizes == recorded, f"files have {sizes} bytes, the catalogue says {recorded}"
        assert sizes <= self._most_bytes, f"{sizes} bytes, over the cap"

    # --- inside ---

    def _judge(self, use: Use) -> None:
        """Make the room that rules ask for, and raise NoSpace for what is not to be stored."""
        if self._ranked is None:
            return
        for key in self._ranked.expired():
            self.drop(key)
        held_bytes = self._catalogue.reader.refresh_totals().size_bytes
        is_full = held_bytes + use.size_bytes > self._capacity_bytes
        if is_full and not self._ranked.admits(use):
            raise NoSpace(
                f"a block of {use.size_bytes} bytes is worth less than what would have to go for it"
                f" under the store's cap of {self._capacity_bytes} bytes: raise the cap"
            )

    def _unrank(self, key: BlockKey) -> None:
        if self._ranked is not None:
            self._ranked.forget(key)

    def _evict(self, victim: Victim) -> None:
        if victim.quarantined:
            self._blocks.remove_quarantined(victim.key)
            return
        self._blocks.remove(victim.key)
        self._unrank(victim.key)
        self._evicted += 1
        self._trace.event("store.evict", tier=self.name, key=victim.key)
