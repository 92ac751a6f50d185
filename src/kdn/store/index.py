"""The two indexes: by exact place, and by content. No bytes of KV, no I/O.

Blocks of one family (fingerprint, recipe, salt) behind the same tokens are kept sorted by their
own tokens.  The longest common prefix with any run of tokens is then found at one of the two
neighbours of the place where that run would stand, so ten thousand documents behind one prelude
cost one bisection.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from kdn.core import BLOCK_TOKENS, BlockId, BlockKey, ChainHash, ContentId, Fingerprint, Recipe
from kdn.store.tokens import TOKEN_BYTES, common_tokens, pack_tokens, unpack_tokens

__all__ = ["BlockHit", "Entry", "Family", "Index", "Match", "Piece"]


class Family(NamedTuple):
    """Blocks that may stand in for one another when their tokens agree."""

    fingerprint: Fingerprint
    recipe: Recipe
    salt: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the indexes know of a block; tokens are packed."""

    key: BlockKey
    family: Family
    behind: ChainHash
    start: int
    tokens: bytes
    content: ContentId

    @staticmethod
    def of(block_id: BlockId) -> Entry:
        """The entry of a block."""
        return Entry(
            block_id.key,
            Family(block_id.fingerprint, block_id.recipe, block_id.salt),
            block_id.behind,
            block_id.start,
            pack_tokens(block_id.token_ids),
            block_id.content_id,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_BYTES

    def block_id(self) -> BlockId:
        """The block's full name."""
        fingerprint, recipe, salt = self.family
        tokens = unpack_tokens(self.tokens)
        return BlockId(fingerprint, recipe, salt, self.behind, self.start, tokens)


@dataclass(frozen=True)
class BlockHit:
    """The first `num_tokens` tokens of a stored block fit; `tier` is the fastest that holds it."""

    id: BlockId
    num_tokens: int
    tier: str


@dataclass(frozen=True)
class Match:
    """The longest leading run of some tokens that the store holds, block by block."""

    hits: tuple[BlockHit, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(hit.num_tokens for hit in self.hits)

    @property
    def keys(self) -> tuple[BlockKey, ...]:
        """What to pin for as long as the match is meant to be used."""
        return tuple(hit.id.key for hit in self.hits)


class Piece(NamedTuple):
    """A step of a match: an entry, and how many of its tokens fit."""

    entry: Entry
    num_tokens: int


_Place = tuple[Fingerprint, str, str, ChainHash]
_BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
_by_tokens = attrgetter("tokens")


class Index:
    """Finds blocks by place and by content. Not safe from several threads by itself."""

    def __init__(self) -> None:
        self._entries: dict[BlockKey, Entry] = {}
        self._places: dict[_Place, list[Entry]] = {}
        self._contents: dict[ContentId, list[BlockKey]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, entries: Iterable[Entry]) -> None:
        """Take entries in; those already known are passed over."""
        disturbed: list[list[Entry]] = []
        for entry in entries:
            if entry.key in self._entries:
                continue
            self._entries[entry.key] = entry
            self._contents.setdefault(entry.content, []).append(entry.key)
            place = self._places.setdefault(_place(entry.family, entry.behind), [])
            place.append(entry)
            if len(place) > 1:
                disturbed.append(place)
        for place in {id(place): place for place in disturbed}.values():
            place.sort(key=_by_tokens)

    def remove(self, key: BlockKey) -> bool:
        """Forget an entry; False when it was not known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        where = _place(entry.family, entry.behind)
        place = self._places[where]
        at = bisect_left(place, entry.tokens, key=_by_tokens)
        while place[at].key != key:  # only a damaged catalogue has two keys for one place
            at += 1
        place.pop(at)
        if not place:
            del self._places[where]
        keys = self._contents[entry.content]
        keys.remove(key)
        if not keys:
            del self._contents[entry.content]
        return True

    def match(self, family: Family, token_ids: Sequence[int]) -> list[Piece]:
        """The longest run from position 0 that the greedy walk finds, block after block.

        At each position the candidate with the longest common prefix is taken, as far as it goes.
        """
        wanted = pack_tokens(token_ids)
        state, position, pieces = hashlib.sha256(), 0, list[Piece]()
        while position < len(wanted):
            behind = ChainHash(state.copy().hexdigest())
            piece = self._longest(family, behind, wanted[position : position + _BLOCK_BYTES])
            if piece is None:
                break
            assert piece.entry.family.recipe.tainted == family.recipe.tainted
            pieces.append(piece)
            stop = position + piece.num_tokens * TOKEN_BYTES
            state.update(wanted[position:stop])
            position = stop
        return pieces

    def find_content(self, content_id: ContentId) -> list[Entry]:
        """Every entry with this text, however and behind whatever it was computed."""
        return [self._entries[key] for key in self._contents.get(content_id, ())]

    def check(self) -> None:
        """Audit the books. Raises AssertionError saying what does not add up."""
        assert sum(map(len, self._places.values())) == len(self._entries), (
            "places and entries differ"
        )
        assert sum(map(len, self._contents.values())) == len(self._entries), "contents differ"
        for where, place in self._places.items():
            assert place == sorted(place, key=_by_tokens), f"entries behind {where} are not sorted"
            for entry in place:
                assert _place(entry.family, entry.behind) == where, f"{entry.key} is misplaced"
                assert self._entries[entry.key] is entry, f"{entry.key} is known twice"

    def _longest(self, family: Family, behind: ChainHash, wanted: bytes) -> Piece | None:
        place = self._places.get(_place(family, behind), [])
        at = bisect_left(place, wanted, key=_by_tokens)
        pieces = [
            Piece(entry, common_tokens(entry.tokens, wanted))
            for entry in place[max(at - 1, 0) : at + 1]
        ]
        best = max(pieces, key=attrgetter("num_tokens"), default=None)
        return best if best is not None and best.num_tokens > 0 else None


def _place(family: Family, behind: ChainHash) -> _Place:
    return family.fingerprint, family.recipe.name, family.salt, behind
