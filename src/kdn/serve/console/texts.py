"""Stored blocks as people think of them: texts, each a run of blocks, with what they cost and save."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdn.core import BLOCK_TOKENS, PUBLIC_SALT, BlockKey, ChainHash
from kdn.core.blocks import TOKEN_BYTES, unpack_tokens
from kdn.store.index.index import Entry
from kdn.store.tiers.tier import BlockLife

__all__ = ["StoredText", "TextRow", "stored_texts", "text_rows"]

_TITLE_TOKENS = 48
Saving = Callable[[int, int], float]
"""saving(start, num_tokens): dollars that one use of a block saves."""


@dataclass(frozen=True)
class StoredText:
    """Neighbouring blocks of one segment of a prompt, first to last."""

    blocks: tuple[Entry, ...]

    @property
    def head(self) -> Entry:
        """The first block; its key names the text."""
        return self.blocks[0]

    @property
    def num_tokens(self) -> int:
        return sum(block.num_tokens for block in self.blocks)


def stored_texts(entries: Iterable[Entry]) -> list[StoredText]:
    """Blocks put together where one goes on in the middle of a segment: after BLOCK_TOKENS tokens.

    A block whose text begins with other blocks than are stored is a text of its own.
    """
    texts: list[list[Entry]] = []
    open_ends: dict[tuple[object, ChainHash], list[Entry]] = {}
    states = {ChainHash(hashlib.sha256().hexdigest()): hashlib.sha256()}
    for entry in sorted(entries, key=lambda one: one.start):
        text = open_ends.pop((entry.family, entry.after), None)
        if text is None:
            texts.append(text := [])
        text.append(entry)
        before = states.get(entry.after)
        if before is None:
            continue  # what it was computed after has left the store
        after = before.copy()
        after.update(entry.tokens)
        end = ChainHash(after.hexdigest())
        states[end] = after
        if entry.num_tokens == BLOCK_TOKENS:
            open_ends[entry.family, end] = text
    return [StoredText(tuple(text)) for text in texts]


@dataclass(frozen=True)
class TextRow:
    """A stored text as the console lists it."""

    id: str
    title: str
    """Its first words; empty where they are not the viewer's to read."""
    model: str
    tenant: str
    kind: str
    """`exact`, or how it departs from that."""
    start: int
    tokens: int
    blocks: int
    size_bytes: int
    tiers: Mapping[str, int]
    """Blocks in each tier."""
    age_s: float
    """Of its oldest block."""
    uses: int
    """Of its most used block."""
    saved_usd: float
    """By the uses so far."""
    value_usd: float
    """By one more use."""
    pinned: bool


def text_rows(
    texts: Sequence[StoredText],
    *,
    lives: Mapping[str, Mapping[BlockKey, BlockLife]],
    where: Callable[[BlockKey], Sequence[str]],
    pinned: Iterable[BlockKey],
    saving: Saving,
    token_bytes: int,
    decode: Callable[[Sequence[int]], str] | None,
    model_name: Callable[[str], str],
) -> list[TextRow]:
    """A row a text. `decode` None: no text is told; else only that of no tenant, or of the public."""
    pins = frozenset(pinned)
    by_key: dict[BlockKey, BlockLife] = {}
    for of_tier in lives.values():
        by_key.update(of_tier)
    return [
        _row(one, by_key, where, pins, saving, token_bytes, decode, model_name) for one in texts
    ]


def _row(
    text: StoredText,
    lives: Mapping[BlockKey, BlockLife],
    where: Callable[[BlockKey], Sequence[str]],
    pins: frozenset[BlockKey],
    saving: Saving,
    token_bytes: int,
    decode: Callable[[Sequence[int]], str] | None,
    model_name: Callable[[str], str],
) -> TextRow:
    head, tiers = text.head, dict[str, int]()
    size_bytes, age_s, uses, saved, value = 0, 0.0, 0, 0.0, 0.0
    for block in text.blocks:
        for tier in where(block.key):
            tiers[tier] = tiers.get(tier, 0) + 1
        life, worth = lives.get(block.key), saving(block.start, block.num_tokens)
        value += worth
        size_bytes += block.num_tokens * token_bytes if life is None else life.size_bytes
        if life is not None:
            age_s, uses = max(age_s, life.age_s), max(uses, life.uses)
            saved += worth * life.uses
    salt = head.family.salt
    shows = decode is not None and salt in ("", PUBLIC_SALT)
    return TextRow(
        id=head.key,
        title=_title(head, decode) if decode is not None and shows else "",
        model=model_name(head.family.fingerprint),
        tenant=salt,
        kind=head.family.recipe.name,
        start=head.start,
        tokens=text.num_tokens,
        blocks=len(text.blocks),
        size_bytes=size_bytes,
        tiers=tiers,
        age_s=round(age_s, 1),
        uses=uses,
        saved_usd=saved,
        value_usd=value,
        pinned=all(block.key in pins for block in text.blocks),
    )


def _title(head: Entry, decode: Callable[[Sequence[int]], str]) -> str:
    first = unpack_tokens(head.tokens[: _TITLE_TOKENS * TOKEN_BYTES])
    return " ".join(decode(first).split())
