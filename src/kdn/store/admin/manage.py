"""What an operator does with stored blocks: find, warm, copy, move, compress, drop, count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TypeVar

from kdn.core import BlockKey
from kdn.errors import BadInput, CorruptBlock, NoSpace, StoreError, Unreachable
from kdn.machine.text import counted
from kdn.store.block.format import Block, EncodedBlock, encode_block
from kdn.store.block.pieces import do_together
from kdn.store.block.reader import Reader, read_whole
from kdn.store.block.wire import scales_within
from kdn.store.codecs import CODECS
from kdn.store.store import Store
from kdn.store.tiers.tier import ManagedTier

__all__ = [
    "Done",
    "Which",
    "compress",
    "copy",
    "forget",
    "move",
    "move_each",
    "select",
    "usage_by_salt",
    "warm",
    "whole_block",
]

_Source = TypeVar("_Source", bound=str | None)
"""The name of a tier; None: the fastest that has the block."""
_WARMED_AT_ONCE, _WARMED_BYTES = 8, 64 << 20
"""Blocks that are read side by side: as many calls as a tier makes, and as much as its queue takes."""


@dataclass(frozen=True)
class Which:
    """Blocks: those named, or all of a tenant, of a model, of a tier; what is None does not matter."""

    keys: tuple[BlockKey, ...] = ()
    salt: str | None = None
    fingerprint: str | None = None
    tier: str | None = None


@dataclass(frozen=True)
class Done:
    """What became of the blocks that something was to be done with."""

    blocks: int = 0
    size_bytes: int = 0
    missing: int = 0
    """Gone meanwhile (dropped, or evicted by another process), not whole, or in a tier that does not answer;
    to be compressed, also those in far tiers only."""


def select(store: Store, which: Which) -> list[BlockKey]:
    """The keys of the blocks meant. Raises BadInput for a key or tier that is not there."""
    if which.tier is not None:
        store.tiers.named(which.tier)
    known = {entry.key: entry for entry in store.index.entries()}
    for key in which.keys:
        if key not in known:
            raise BadInput(f"no block {key} is stored; `kdn store lookup` tells what is")
    return [
        key
        for key, entry in known.items()
        if (not which.keys or key in which.keys)
        and which.salt in (None, entry.family.salt)
        and which.fingerprint in (None, entry.family.fingerprint)
        and (which.tier is None or which.tier in store.tiers.where(key))
    ]


def warm(
    store: Store, keys: Sequence[BlockKey], on_done: Callable[[], object] = lambda: None
) -> Done:
    """Bring blocks into the fastest tier, and those from far tiers onto the disk too.

    Calls `on_done` for each, once it was read or is known to be missing.
    """
    done = list[int | None]()
    for start in range(0, len(keys), _WARMED_AT_ONCE):
        some = _read_whole(store, keys[start : start + _WARMED_AT_ONCE])
        for _ in some:
            on_done()
        done += some
    return _sum(done)


def _read_whole(store: Store, keys: Sequence[BlockKey]) -> list[int | None]:
    """Read blocks side by side, which puts them into faster tiers too: sizes, None of what does not come."""
    sizes, readers, held = dict[BlockKey, int](), list[Reader](), ExitStack()

    def open_one(key: BlockKey) -> None:
        entry = store.index.get(key)
        reader = None if entry is None else store.open(entry.block_id())
        if reader is not None:
            readers.append(held.enter_context(reader))

    def read(reader: Reader) -> None:
        with suppress(CorruptBlock):  # counted by the store
            runs = reader.layers(0, reader.shape.num_layers)
            sizes[reader.id.key] = sum(run.nbytes for run in runs)

    with held:
        do_together(open_one, keys, len(keys))
        while readers:
            some = [readers.pop() for _ in range(_fitting(readers))]
            do_together(read, some, min(reader.at_once for reader in some))
            store.flush()  # what came goes to the disk from a queue, which takes only so much
    return [sizes.get(key) for key in keys]


def _fitting(readers: Sequence[Reader]) -> int:
    """How many of the last of them are read together: one at least."""
    sizes = accumulate(reader.num_tokens * reader.shape.token_bytes for reader in reversed(readers))
    return max(1, sum(size <= _WARMED_BYTES for size in sizes))


def copy(store: Store, keys: Iterable[BlockKey], target: str, source: str | None = None) -> Done:
    """Put blocks into tier `target` too, from `source` or the fastest that has them.

    Returns when they are stored there. Raises BadInput for an unknown tier, NoSpace, Unreachable.
    """
    tier = store.tiers.named(target)

    return _carried(
        store,
        ((key, source) for key in keys),
        tier,
        lambda block, _: store.tenancy.put_into(tier, block),
    )


def move(store: Store, keys: Iterable[BlockKey], target: str, source: str) -> Done:
    """Copy blocks to `target`, each dropped from `source` once it is stored there whole.

    Raises as `copy`, and BadInput where `source` outlives this process and `target` does not: the blocks
    would end with it.
    """
    return _moved(store, ((key, source) for key in keys), target, {source})


def move_each(store: Store, places: Sequence[tuple[BlockKey, str]], target: str) -> Done:
    """As `move`, each block from a tier of its own."""
    return _moved(store, places, target, {source for _, source in places})


def _moved(
    store: Store, places: Iterable[tuple[BlockKey, str]], target: str, sources: set[str]
) -> Done:
    tier = store.tiers.named(target)
    origins = {source: store.tiers.named(source) for source in sources}
    if target in origins:
        raise BadInput(f"blocks cannot move from {target} to itself")
    for source, origin in origins.items():
        if origin.outlives_process and not tier.outlives_process:
            raise BadInput(
                f"blocks cannot move from {source} to {target}: they would end with this process; copy them,"
                " or name the disk or a tier across the network"
            )

    return _carried(
        store,
        places,
        tier,
        lambda block, _: _put_whole(store, tier, block),
        lambda key, source: origins[source].drop(key),
    )


def _carried(
    store: Store,
    places: Iterable[tuple[BlockKey, _Source]],
    target: ManagedTier,
    put: Callable[[EncodedBlock, _Source], None],
    after: Callable[[BlockKey, _Source], object] = lambda _, __: None,
) -> Done:
    """Put every block that its source gives whole into `target`, and do `after`. An error tells how many were
    put before it.

    What is dropped meanwhile stays dropped, and is missing.  This process evicts no block that is on its way.
    One that leaves its tier otherwise, by another process's eviction or its time to live, is taken back and
    missing, too: no catalogue says why a block went, and what was dropped may be secret.
    """
    pins = store.tenancy.pins
    done: list[int | None] = []

    def place(block: EncodedBlock, origin: ManagedTier, source: _Source) -> bool:
        store.index.refresh()  # what another process dropped from `target` is not there
        was_there = target.holds(block.key)
        put(block, source)
        if not was_there and _left(store, block.key, origin, target):
            target.drop(block.key)
            return False
        after(block.key, source)
        return True

    try:
        for key, source in places:
            pins.hold(key)
            try:
                with store.queues.carrying(key) as write:
                    found = _found(store, key, source)
                    is_placed = found is not None and write.do(partial(place, *found, source))
            finally:
                pins.release(key)
            done.append(found[0].size_bytes if found is not None and is_placed else None)
    except (NoSpace, Unreachable) as error:
        before = counted(_sum(done).blocks, "block")
        raise type(error)(f"{error}; {before} went there before") from error
    finally:
        store.index.refresh()
    return _sum(done)


def _left(store: Store, key: BlockKey, origin: ManagedTier, target: ManagedTier) -> bool:
    """Has the block gone since it was read from `origin`, dropped or evicted by another process?

    What a trusted tier gives up, which is this process's own, it gives up for room.
    """
    store.index.refresh()
    return not origin.trusted and not any(
        tier.holds(key) for tier in store.tiers if tier is not target
    )


def forget(store: Store, keys: Iterable[BlockKey], tier: str | None = None) -> Done:
    """Drop blocks from every tier, or from one."""
    drop = store.drop if tier is None else store.tiers.named(tier).drop
    dropped = [drop(key) for key in keys]
    if tier is not None:
        store.index.refresh()
    return Done(dropped.count(True), missing=dropped.count(False))


def compress(store: Store, keys: Iterable[BlockKey], codec: str) -> Done:
    """Write blocks of this machine again with a lossless codec, each replaced whole: `size_bytes` is what
    they take.

    Raises BadInput for an unknown codec, and for a lossy one: what loses precision has another key.
    """
    if codec not in CODECS:
        raise BadInput(f"no codec {codec!r}; there are {', '.join(sorted(CODECS))}")
    if not CODECS[codec].lossless:
        raise BadInput(
            f"codec {codec} loses precision: it cannot replace exact blocks, only be chosen when"
            " they are computed"
        )
    done: list[int | None] = []
    for key in keys:
        with store.queues.carrying(key) as write:
            is_here = any(tier.holds(key) for tier in store.tiers.local)
            block = whole_block(store, key) if is_here else None
            if block is not None and block.header.codec != codec:
                block = encode_block(_plain(block), CODECS[codec])
                block = block if write.do(partial(_replaced, store, block)) else None
        done.append(None if block is None else block.size_bytes)
    return _sum(done)


def _replaced(store: Store, block: EncodedBlock) -> bool:
    """False, and nothing is written, where no tier of this machine has the block any more: another process
    dropped it since it was read, or it went for room."""
    store.index.refresh()
    if not any(tier.holds(block.key) for tier in store.tiers.local):
        return False
    store.replace(block)
    return True


def usage_by_salt(store: Store) -> dict[str, dict[str, int]]:
    """Bytes held, by tenant and tier."""
    salts = {entry.family.salt for entry in store.index.entries()}
    return {
        salt: {
            tier.name: sum(one.size_bytes for one in tier.holdings(salt)) for tier in store.tiers
        }
        for salt in sorted(salts)
    }


def whole_block(store: Store, key: BlockKey, source: str | None = None) -> EncodedBlock | None:
    """The block from tier `source`, or from the fastest that gives it whole; None when none does.

    Damaged copies and tiers that do not answer are passed over.
    """
    found = _found(store, key, source)
    return None if found is None else found[0]


def _found(
    store: Store, key: BlockKey, source: str | None
) -> tuple[EncodedBlock, ManagedTier] | None:
    """The block as `whole_block`, and the tier that gave it."""
    tiers: Iterable[ManagedTier] = store.tiers if source is None else (store.tiers.named(source),)
    for tier in tiers:
        with suppress(CorruptBlock, StoreError):
            handle = tier.open(key)
            if handle is not None:
                with closing(handle):
                    return read_whole(key, handle), tier
    return None


def _put_whole(store: Store, tier: ManagedTier, block: EncodedBlock) -> None:
    """What the tier had as that block may be damaged, and the caller gives up another copy."""
    if tier.holds(block.key) and whole_block(store, block.key, tier.name) is None:
        tier.replace(block, store.tenancy.spares)
    else:
        store.tenancy.put_into(tier, block)


def _plain(block: EncodedBlock) -> Block:
    header = block.header
    columns = scales_within(header.columns, 0)
    hidden = {
        one.layer: header.hidden_states(one.layer, lambda start, stop: block.data[start:stop])
        for one in header.hidden
    }
    held = {layer: run for layer, run in hidden.items() if run is not None}
    return Block(header.id, header.shape, tuple(_runs(block)), columns, held)


def _runs(block: EncodedBlock) -> Iterator[memoryview]:
    for layer in range(block.header.shape.num_layers):
        start, stop = block.header.layer_range(layer)
        yield block.header.layer(layer, block.data[start:stop])


def _sum(sizes: Iterable[int | None]) -> Done:
    known = list(sizes)
    stored = [size for size in known if size is not None]
    return Done(len(stored), sum(stored), len(known) - len(stored))
