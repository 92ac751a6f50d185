"""The disk tier: one file a block, under a cap that holds for every process on the folder."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from kdn.clock import Clock
from kdn.core import BlockId, BlockKey
from kdn.errors import CorruptBlock, LostBlock, NoSpace, StoreError
from kdn.machine.files import Files, system_errors
from kdn.machine.memory import OWN_PAGES_FROM, allocate
from kdn.store.block.format import ALIGN, MAX_BLOCK_BYTES, EncodedBlock
from kdn.store.block.reader import read_header
from kdn.store.index.index import Entry
from kdn.store.policies import EvictionPolicy, Use
from kdn.store.tenants.quotas import Holding
from kdn.store.tiers.disk.catalogue import Catalogue, CatalogueDamaged, Victim, discard_catalogue
from kdn.store.tiers.disk.folder import StoreFolder
from kdn.store.tiers.disk.ranked import RankedBlocks
from kdn.store.tiers.seal import SEAL_BYTES, KeyRing, is_sealed
from kdn.store.tiers.tier import Changes, Handle, Life, Spare, Tier, TierUsage
from kdn.trace import Trace

__all__ = ["DiskTier", "default_capacity"]

MOST_BYTES = 20 * 10**9


def default_capacity(folder: Path, held_bytes: int) -> int:
    """The cap when none is given: 20 GB, or a tenth of what is free, whichever is less.

    What the store holds already counts as free, or every opening would make it smaller.
    """
    with system_errors(f"looking for free space at {folder}"):
        return min(MOST_BYTES, (shutil.disk_usage(folder).free + held_bytes) // 10)


def _open(path: Path, *, direct: bool) -> int:
    """For reading; a file system that has no O_DIRECT is read as usual."""
    if direct and hasattr(os, "O_DIRECT"):
        with suppress(OSError):
            if path.stat().st_size >= OWN_PAGES_FROM and path.stat().st_size % ALIGN == 0:
                return os.open(path, os.O_RDONLY | os.O_DIRECT)
    return os.open(path, os.O_RDONLY)


class _File(Handle):
    """An open block file: it can be read to its end even after it was unlinked.

    Reads cover whole pages, as O_DIRECT wants it; so do the parts of a block.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._closing = threading.Lock()
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > MAX_BLOCK_BYTES:
            self.close()
            raise CorruptBlock(f"a file of {size_bytes} bytes is no block")
        self.buffer = allocate(size_bytes)

    def read(self, start: int, stop: int) -> memoryview:
        size, wanted = self.buffer.nbytes, slice(start, stop)
        start, stop = start // ALIGN * ALIGN, min(-(-stop // ALIGN) * ALIGN, size)
        view = self.buffer[start:stop]
        assert self._descriptor is not None
        try:
            got = os.preadv(self._descriptor, [view], start)
        except OSError as error:
            raise CorruptBlock(f"bytes {start} to {stop} cannot be read: {error}") from error
        if got != stop - start:
            raise CorruptBlock(f"bytes {start} to {stop} were asked for, {got} are there")
        return self.buffer[wanted]

    def close(self) -> None:
        with self._closing:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _use_of(block: EncodedBlock) -> Use:
    name = block.header.id
    return Use(block.key, name.start, name.num_tokens, block.size_bytes, 0.0, name.salt)


class DiskTier(Tier):
    """Blocks in `folder`, at most `capacity_bytes` of files at any time.

    None means the cap that was last given for this folder, or `default_capacity`.  The catalogue,
    about 1.5 KB a block, comes on top.

    A put block survives a power cut.  Another process may evict what this one pins; a block that
    is open can be read to its end all the same.  Opening brings the catalogue up to date with the
    files that are there; it raises ForeignStore or StoreError when the folder cannot be used.
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
        files: Files | None = None,
    ) -> None:
        """`policy` None is least recently used, over all processes; it belongs to the tier.

        With a `ring` files are sealed, and the catalogue's tokens veiled.  `direct` reads past the
        operating system's cache, where the file system can.
        """
        self._direct = direct
        self._ring = ring
        self._files = files or Files()
        self._folder = StoreFolder(folder, self._files)
        self._clock = clock
        self._trace = trace
        self._evicted = 0
        with self._folder.opening():
            living = self._folder.sweep()
            self._folder.sign_in()
            try:
                self._catalogue = self._open_catalogue(living)
                self._ranked = None if policy is None else RankedBlocks(policy, clock)
                if self._ranked is not None:
                    self._ranked.learn(self._catalogue.uses())
                    self._catalogue.rank_by(self._ranked.victims)
                self._capacity_bytes = self._fit(capacity_bytes)
            except BaseException:
                self._folder.sign_out()
                raise

    def open(self, key: BlockKey) -> Handle | None:
        if not self.holds(key):
            return None
        try:
            descriptor = _open(self._folder.block(key), direct=self._direct)
        except FileNotFoundError:
            self._forget_vanished(self._catalogue, key)
            return None
        except OSError as error:
            self._trace.event("store.unreadable", key=key, reason=str(error))
            return None
        return self._opened(key, _File(descriptor))

    def _opened(self, key: BlockKey, file: _File) -> Handle | None:
        """The file as a block: unsealed on the way, if need be. None without its key."""
        try:
            sealed = is_sealed(file.read(0, min(SEAL_BYTES, file.buffer.nbytes)))
            if not sealed:
                return file
            if self._ring is not None:
                return self._ring.open(key, file)
            self._trace.event("store.unreadable", key=key, reason="sealed, and no key is given")
        except LostBlock as error:
            self._trace.event("store.unreadable", key=key, reason=str(error))
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        final = self._folder.block(block.key)
        if self.holds(block.key) and final.exists():
            self.touch(block.key)
            return
        use = _use_of(block)
        self._judge(use)
        self.replace(block, spare)
        if self._ranked is not None:
            self._ranked.insert(use)

    def drop(self, key: BlockKey) -> bool:
        self._unrank(key)
        return self._catalogue.remove(key, lambda: self._unlink(key))

    def holds(self, key: BlockKey) -> bool:
        return self._catalogue.knows(key)

    def changes(self) -> Changes:
        if self._ranked is None:
            return self._catalogue.changes()
        for key in self._ranked.expired():
            self.drop(key)
        changes = self._catalogue.changes()
        for key in changes.removed:
            self._ranked.forget(key)
        if self._ranked.unknown(entry.key for entry in changes.added):
            self._ranked.learn(self._catalogue.uses())
        return changes

    def usage(self) -> TierUsage:
        totals = self._catalogue.totals()
        return TierUsage(
            totals.blocks,
            totals.tokens,
            totals.size_bytes,
            self._capacity_bytes,
            self._evicted,
        )

    def touch(self, key: BlockKey) -> None:
        self._catalogue.touch(key)
        if self._ranked is not None:
            self._ranked.touch(key)

    def quarantine(self, key: BlockKey) -> None:
        self._unrank(key)
        self._catalogue.quarantine(key, lambda: self._set_aside(key))

    def block_keys(self) -> Iterator[BlockKey]:
        return iter(self._catalogue.keys())

    def holdings(self, salt: str) -> Sequence[Holding]:
        self._catalogue.save()
        return self._catalogue.holdings(salt)

    def lives(self) -> list[Life]:
        return self._catalogue.lives()

    def replace(self, block: EncodedBlock, spare: Spare) -> None:
        """One file takes the other's place: whoever looks finds either of them, whole."""
        block_id, data = block.header.id, block.data
        if self._ring is not None:
            data = self._ring.seal(block.key, block_id.salt, data)
        number = self._catalogue.reserve(data.nbytes, self._capacity_bytes, spare, self._evict)
        try:
            self._write(block_id, data, number)
        except BaseException:
            with suppress(StoreError):
                self._catalogue.cancel(number)
            raise

    def save(self) -> None:
        self._catalogue.save()

    def check(self) -> None:
        self._catalogue.check()
        if self._ranked is not None:
            self._ranked.check()
        rows, files = set(self._catalogue.keys()), set(self._folder.blocks())
        assert rows == files, f"rows without a file, or files without a row: {rows ^ files}"
        sizes = sum(path.stat().st_size for path in self._folder.files())
        booked = self._catalogue.totals().size_bytes
        assert sizes == booked, f"files have {sizes} bytes, the catalogue says {booked}"
        assert sizes <= self._capacity_bytes, f"{sizes} bytes, over the cap"

    def close(self) -> None:
        try:
            self._catalogue.close()
        finally:
            self._folder.sign_out()

    # --- opening ---

    def _open_catalogue(self, living: list[str]) -> Catalogue:
        try:
            return self._up_to_date(living)
        except CatalogueDamaged as error:
            if living:
                raise
            self._trace.event("store.rebuild", reason=str(error))
            discard_catalogue(self._folder.catalogue)
            return self._up_to_date(living)

    def _up_to_date(self, living: list[str]) -> Catalogue:
        veil = None if self._ring is None else self._ring.veil
        catalogue = Catalogue(self._folder.catalogue, self._folder.owner, self._clock.wall, veil)
        try:
            catalogue.bury([*living, self._folder.owner])
            self._reconcile(catalogue)
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    def _fit(self, capacity_bytes: int | None) -> int:
        """The cap. One that is given is remembered, and what exceeds it evicted at once.

        Without that, somebody who only looks would evict what a server with a larger cap keeps.
        """
        if capacity_bytes is not None:
            self._catalogue.set_capacity(capacity_bytes, lambda _: False, self._evict)
            return capacity_bytes
        remembered = self._catalogue.capacity_bytes()
        held_bytes = self._catalogue.totals().size_bytes
        return remembered or default_capacity(self._folder.path, held_bytes)

    def _reconcile(self, catalogue: Catalogue) -> None:
        """Rows for files that have none, and no rows for files that are gone."""
        files, rows = set(self._folder.blocks()), set(catalogue.keys())
        for key in files - rows:
            self._adopt(catalogue, key)
        # Whoever wrote them may have died before their names were on the device.
        for folder in {self._folder.block(key).parent for key in files - rows}:
            self._files.sync_folder(folder)
        for key in rows - files:
            self._forget_vanished(catalogue, key)
        self._reconcile_quarantine(catalogue)

    def _reconcile_quarantine(self, catalogue: Catalogue) -> None:
        files, rows = set(self._folder.damaged()), set(catalogue.quarantined())
        for key in files - rows:
            self._files.remove(self._folder.quarantined(key))
        for key in rows - files:
            catalogue.remove(key, lambda: True)

    def _adopt(self, catalogue: Catalogue, key: BlockKey) -> None:
        path = self._folder.block(key)
        try:
            with path.open("rb") as file:
                handle = self._opened(key, _File(os.dup(file.fileno())))
            if handle is None:
                return  # sealed: it stays for who has its key
            try:
                header = read_header(handle, key)
            finally:
                handle.close()
        except FileNotFoundError:
            return  # evicted by another process meanwhile
        except CorruptBlock as error:
            self._trace.event("store.corrupt", tier=self.name, key=key, reason=str(error))
            self._files.remove(path)
            return
        found = path.stat()
        catalogue.publish(None, Entry.of(header.id), found.st_size, found.st_mtime)

    # --- ranking ---

    def _judge(self, use: Use) -> None:
        """Make the room that rules ask for, and raise NoSpace for what is not to be kept."""
        if self._ranked is None:
            return
        for key in self._ranked.expired():
            self.drop(key)
        full = self._catalogue.totals().size_bytes + use.size_bytes > self._capacity_bytes
        if full and not self._ranked.admits(use):
            raise NoSpace(
                f"a block of {use.size_bytes} bytes is worth less than what would have to go for it"
                f" under the store's cap of {self._capacity_bytes} bytes: raise the cap"
            )

    def _unrank(self, key: BlockKey) -> None:
        if self._ranked is not None:
            self._ranked.forget(key)

    # --- files ---

    def _write(self, block_id: BlockId, data: memoryview, number: int) -> None:
        temporary, final = self._folder.temporary(number), self._folder.block(block_id.key)
        self._files.write_temporary(temporary, data)

        def place() -> None:
            self._files.remove(self._folder.quarantined(block_id.key))
            self._files.publish(temporary, final)

        try:
            entry = Entry.of(block_id)
            self._catalogue.publish(number, entry, data.nbytes, self._clock.wall(), place)
        except BaseException:
            # Bytes that no row counts would escape the cap, so the file must not outlive the row.
            self._files.remove(temporary)
            self._files.remove(final)
            raise

    def _evict(self, victim: Victim) -> None:
        aside = self._folder.quarantined(victim.key)
        with system_errors(f"evicting block {victim.key}"):
            self._files.remove(aside if victim.quarantined else self._folder.block(victim.key))
        if not victim.quarantined:
            self._unrank(victim.key)
            self._evicted += 1
            self._trace.event("store.evict", tier=self.name, key=victim.key)

    def _unlink(self, key: BlockKey) -> bool:
        with system_errors(f"dropping block {key}"):
            self._files.remove(self._folder.block(key))
            self._files.remove(self._folder.quarantined(key))
        return True

    def _set_aside(self, key: BlockKey) -> int:
        aside = self._folder.quarantined(key)
        with system_errors(f"setting block {key} aside"), suppress(FileNotFoundError):
            return self._files.move(self._folder.block(key), aside)
        return 0

    def _forget_vanished(self, catalogue: Catalogue, key: BlockKey) -> None:
        """Somebody removed the file: the row goes too, unless the file is back by then."""
        path = self._folder.block(key)
        try:
            catalogue.remove(key, lambda: not path.exists())
        except StoreError as error:
            self._trace.event("store.unreadable", key=key, reason=str(error))
