"""Opening a catalogue: what it says and what files are there are made to agree."""

from __future__ import annotations

from functools import partial

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, StoreError
from kdn.store.block.reader import read_header
from kdn.store.index.index import Entry
from kdn.store.tiers.disk.block_files import BlockFiles, StoreFolder
from kdn.store.tiers.disk.catalogue import Catalogue, discard_catalogue
from kdn.store.tiers.disk.catalogue_reader import CatalogueDamaged, Veil
from kdn.trace import Trace

__all__ = ["forget_vanished", "open_catalogue", "settle"]


def open_catalogue(
    folder: StoreFolder,
    blocks: BlockFiles,
    living: list[str],
    clock: Clock,
    trace: Trace,
    veil: Veil | None,
) -> Catalogue:
    """The folder's catalogue, agreeing with its files; a damaged one is rebuilt from them.

    `living` are the owners at work. Raises CatalogueDamaged while there are any, StoreError.
    """
    try:
        return _agreeing(folder, blocks, living, clock, trace, veil)
    except CatalogueDamaged as error:
        if living:
            raise
        trace.event("store.rebuild", reason=str(error))
        discard_catalogue(folder.catalogue)
        return _agreeing(folder, blocks, living, clock, trace, veil)


def settle(catalogue: Catalogue, blocks: BlockFiles, key: BlockKey) -> None:
    """Have the block's row and its file agree, whatever interrupted a write. Raises StoreError."""
    size_of, unlink = partial(blocks.size, key), partial(blocks.take_back, key)
    catalogue.writer.settle(key, size_of, unlink)


def forget_vanished(catalogue: Catalogue, blocks: BlockFiles, key: BlockKey, trace: Trace) -> None:
    """The file is gone: the row goes too, unless the file is back by then."""
    try:
        catalogue.writer.remove(key, lambda: not blocks.exists(key))
    except StoreError as error:
        trace.event("store.unreadable", key=key, reason=str(error))


def _agreeing(
    folder: StoreFolder,
    blocks: BlockFiles,
    living: list[str],
    clock: Clock,
    trace: Trace,
    veil: Veil | None,
) -> Catalogue:
    catalogue = Catalogue(folder.catalogue, folder.owner, clock.wall, veil)
    try:
        catalogue.reader.check_families()
        catalogue.writer.release_dead([*living, folder.owner])
        _reconcile(catalogue, blocks, trace)
        _reconcile_quarantine(catalogue, blocks)
    except BaseException:
        catalogue.close()
        raise
    return catalogue


def _reconcile(catalogue: Catalogue, blocks: BlockFiles, trace: Trace) -> None:
    """Rows for files that have none, no rows for files that are gone, and in rows the sizes of files.

    A rewritten block's row has the old size where its process died, or the power was cut, before the
    commit was on the device.
    """
    files, rows = blocks.sizes(), catalogue.reader.sizes()
    new = files.keys() - rows.keys()
    for key in new:
        _adopt(catalogue, blocks, key, trace)
    blocks.sync_names(new)
    for key in rows.keys() - files.keys():
        forget_vanished(catalogue, blocks, key, trace)
    for key, size_bytes in rows.items():
        if files.get(key, size_bytes) != size_bytes:
            settle(catalogue, blocks, key)


def _reconcile_quarantine(catalogue: Catalogue, blocks: BlockFiles) -> None:
    files, rows = set(blocks.quarantined_keys()), set(catalogue.reader.quarantined())
    for key in files - rows:
        blocks.remove_quarantined(key)
    for key in rows - files:
        catalogue.writer.remove(key, lambda: True)


def _adopt(catalogue: Catalogue, blocks: BlockFiles, key: BlockKey, trace: Trace) -> None:
    """A row for a file that has none; a file that is no block goes."""
    try:
        handle = blocks.open(key)
        if handle is None:
            return  # sealed: it stays for the process that has its key
        try:
            header = read_header(handle, key)
        finally:
            handle.close()
        size_bytes, written_s = blocks.size_and_time(key)
    except FileNotFoundError:
        return  # evicted by another process meanwhile
    except LostBlock as error:
        trace.event("store.unreadable", key=key, reason=str(error))
        return  # it is adopted once it can be read
    except CorruptBlock as error:
        trace.event("store.corrupt", tier="disk", key=key, reason=str(error))
        blocks.remove(key)
        return
    catalogue.writer.publish(None, Entry.of(header.id), size_bytes, written_s)
