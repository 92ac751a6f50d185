"""A block's note: its catalogue entry as bytes, so that others can find the block by its tokens."""

from __future__ import annotations

import msgspec

from kdn.core import BLOCK_TOKENS, BlockId, BlockKey, Cause, ChainHash, Fingerprint, Recipe
from kdn.core.blocks import unpack_tokens
from kdn.store.block.format import MAX_POSITION, MAX_TEXT
from kdn.store.index.index import Entry

__all__ = ["pack_note", "read_note"]

MAX_NOTE_BYTES = 1 << 16


class _Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    fingerprint: str
    causes: tuple[Cause, ...]
    detail: str
    salt: str
    behind: str
    start: int
    tokens: bytes


def pack_note(entry: Entry) -> bytes:
    """The entry as bytes."""
    fingerprint, recipe, salt = entry.family
    note = _Note(
        fingerprint, recipe.causes, recipe.detail, salt, entry.after, entry.start, entry.tokens
    )
    return msgspec.msgpack.encode(note)


def read_note(key: BlockKey, packed: bytes) -> Entry | None:
    """The entry that `packed` says, if it is that of the block called `key`; else None."""
    if len(packed) > MAX_NOTE_BYTES:
        return None
    try:
        note = msgspec.msgpack.decode(packed, type=_Note)
        tokens = unpack_tokens(note.tokens)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError):
        return None
    texts = (note.fingerprint, note.detail, note.salt, note.behind)
    if (
        not 1 <= len(tokens) <= BLOCK_TOKENS
        or not 0 <= note.start <= MAX_POSITION
        or max(map(len, texts)) > MAX_TEXT
    ):
        return None
    recipe = Recipe(note.causes, note.detail)
    block_id = BlockId(
        Fingerprint(note.fingerprint), recipe, note.salt, ChainHash(note.behind), note.start, tokens
    )
    return Entry.of(block_id) if block_id.key == key else None
