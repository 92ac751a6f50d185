"""The two indexes: by exact place, and by content. No bytes of KV, no I/O.

Blocks of one family (fingerprint, recipe, salt) after the same tokens are kept sorted by their
own tokens.  The longest common prefix with any run of tokens is then found at one of the two
neighbours of the place where that run would stand, so ten thousand documents after one prelude
cost one bisection.

A match may leave a block before its end: another one may follow just a part of it.

    wanted   1 2 3 4 5 6 7 8          greedy would take all that fits of a (5) and be stuck at 5,
    a        1 2 3 4 5 9              because nothing follows 1 2 3 4 5
    b              4 5 6 7 8          so: a to 3, then b to 8
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

from kdn.core import BLOCK_TOKENS, BlockId, BlockKey, ChainHash, ContentId, Fingerprint, Recipe
from kdn.core.blocks import TOKEN_BYTES, common_tokens, pack_tokens, unpack_tokens

__all__ = ["BlockHit", "Entry", "Family", "Index", "IndexPiece", "Match"]


class Family(NamedTuple):
    """Blocks that may stand in for one another when their tokens agree."""

    fingerprint: Fingerprint
    recipe: Recipe
    salt: str


class Entry(NamedTuple):
    """What the indexes know of a block; tokens are packed."""

    family: Family
    key: BlockKey
    after: ChainHash
    start: int
    tokens: bytes
    content: ContentId

    @staticmethod
    def of(block_id: BlockId) -> Entry:
        """The entry of a block."""
        return Entry(
            Family(block_id.fingerprint, block_id.recipe, block_id.salt),
            block_id.key,
            block_id.after,
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
        return BlockId(fingerprint, recipe, salt, self.after, self.start, tokens)


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

    def leading(self, num_tokens: int) -> Match:
        """The first `num_tokens` tokens of it, or all where there are fewer."""
        hits, left = list[BlockHit](), num_tokens
        for hit in self.hits:
            if left <= 0:
                break
            hits.append(replace(hit, num_tokens=min(hit.num_tokens, left)))
            left -= hit.num_tokens
        return Match(tuple(hits))


class IndexPiece(NamedTuple):
    """A step of a match: an entry, and how many of its tokens fit."""

    entry: Entry
    num_tokens: int

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.entry.start + self.num_tokens


_BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
_by_tokens = attrgetter("tokens")


class Index:
    """Finds blocks by place and by content. Not safe from several threads by itself."""

    def __init__(self) -> None:
        self._entries: dict[BlockKey, Entry] = {}
        self._shelves: dict[Family, _Shelf] = {}
        self._contents: dict[ContentId, tuple[BlockKey, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, key: BlockKey) -> Entry | None:
        """The entry called `key`, if it is known."""
        return self._entries.get(key)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take entries in; those already known are passed over."""
        known, contents = self._entries, self._contents
        touched: dict[int, _Shelf] = {}
        family, shelf = None, _Shelf()
        for entry in entries:
            key = entry.key
            if key in known:
                continue
            known[key] = entry
            content = entry.content
            others = contents.get(content)
            contents[content] = (key,) if others is None else (*others, key)
            if entry.family is not family:  # hashing a family for every entry would show
                family = entry.family
                shelf = self._shelves.setdefault(family, _Shelf())
                touched[id(shelf)] = shelf
            shelf.add(entry)
        for shelf in touched.values():
            shelf.sort()

    def remove(self, key: BlockKey) -> bool:
        """Forget an entry; False when it was not known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        shelf = self._shelves[entry.family]
        shelf.remove(entry)
        if shelf.is_empty:
            del self._shelves[entry.family]  # any request may name a family of its own
        rest = tuple(other for other in self._contents.pop(entry.content) if other != key)
        if rest:
            self._contents[entry.content] = rest
        return True

    def has_family(self, family: Family) -> bool:
        """Is any block of the family known?"""
        return family in self._shelves

    def match(
        self, families: Sequence[Family], token_ids: Sequence[int], start: int = 0
    ) -> list[IndexPiece]:
        """The longest run from position `start` that blocks of these families (of one model)
        cover, in as few blocks as that takes. Between equal ones the family named first wins."""
        shelves = [self._shelves[one] for one in dict.fromkeys(families) if one in self._shelves]
        pieces = _match(shelves, pack_tokens(token_ids), start) if shelves else []
        assert all(p.entry.family in families for p in pieces), "a block of a stranger"
        return pieces

    def find_content(self, content_id: ContentId) -> list[Entry]:
        """Every entry with this text, however and after whatever it was computed."""
        return [self._entries[key] for key in self._contents.get(content_id, ())]

    def check(self) -> None:
        """Audit the index. Raises AssertionError saying what does not add up."""
        assert sum(map(len, self._contents.values())) == len(self._entries), "contents differ"
        assert sum(map(len, self._shelves.values())) == len(self._entries), "places differ"
        for shelf in self._shelves.values():
            assert not shelf.is_empty, "a family without entries"
            shelf.check()
        for entry in self:
            assert entry in self._shelves[entry.family], f"{entry.key} is misplaced"


class _Shelf:
    """The entries of one family, by the tokens before them."""

    def __init__(self) -> None:
        self._places: dict[ChainHash, list[Entry]] = {}
        self._starts: Counter[int] = Counter()
        self._ascending: list[int] = []
        self._disturbed: dict[ChainHash, None] = {}

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._places.get(entry.after, ())

    def add(self, entry: Entry) -> None:
        """To be followed by `sort` before anything is looked up."""
        after, start = entry.after, entry.start
        place = self._places.get(after)
        if place is None:
            self._places[after] = [entry]
        else:
            place.append(entry)
            self._disturbed[after] = None
        self._starts[start] = self._starts.get(start, 0) + 1

    def sort(self) -> None:
        for after in self._disturbed:
            self._places[after].sort(key=_by_tokens)
        self._disturbed.clear()
        if len(self._starts) != len(self._ascending):
            self._ascending = sorted(self._starts)

    def remove(self, entry: Entry) -> None:
        place = self._places[entry.after]
        place.remove(entry)
        if not place:
            del self._places[entry.after]
        self._starts[entry.start] -= 1
        if not self._starts[entry.start]:
            del self._starts[entry.start]
            self._ascending.remove(entry.start)

    @property
    def is_empty(self) -> bool:
        return not self._places

    @property
    def starts(self) -> list[int]:
        """Every position that a block starts at, ascending."""
        return self._ascending

    def longest(self, after: ChainHash, start: int, wanted: bytes) -> IndexPiece | None:
        """The entry there that shares most tokens with `wanted`."""
        place = self._places.get(after)
        if place is None:
            return None
        piece = _longest(place, wanted)
        return piece if piece.entry.start == start else None  # its catalogue row is damaged

    def check(self) -> None:
        assert self._ascending == sorted(self._starts), "starts are not sorted"
        for place in self._places.values():
            assert place, "a place without entries"
            assert place == sorted(place, key=_by_tokens), f"after {place[0].after}: not sorted"
        starts = Counter(entry.start for place in self._places.values() for entry in place)
        assert starts == self._starts, "starts differ"


def _match(shelves: Sequence[_Shelf], wanted: bytes, first: int) -> list[IndexPiece]:
    """Wherever the current piece could be left, look how far the next one would reach; take the
    one that reaches furthest."""
    num_wanted = len(wanted) // TOKEN_BYTES
    state, hashed, walk = hashlib.sha256(), 0, _Walk(first)
    for start in _starts(shelves):
        if start < first:
            continue
        if start >= num_wanted or not walk.can_leave_at(start):
            break
        at = start * TOKEN_BYTES
        state.update(wanted[hashed:at])
        hashed, after = at, ChainHash(state.copy().hexdigest())
        for shelf in shelves:
            piece = shelf.longest(after, start, wanted[at : at + _BLOCK_BYTES])
            if piece is not None:
                walk.offer(piece)
    return walk.pieces()


def _starts(shelves: Sequence[_Shelf]) -> Iterable[int]:
    if len(shelves) == 1:
        return shelves[0].starts
    return dict.fromkeys(heapq.merge(*(shelf.starts for shelf in shelves)))


def _longest(place: list[Entry], wanted: bytes) -> IndexPiece:
    """The entry that shares most tokens with `wanted`, and how many."""
    at = bisect_left(place, wanted, key=_by_tokens)
    neighbours = place[max(at - 1, 0) : at + 1]
    pieces = [IndexPiece(entry, common_tokens(entry.tokens, wanted)) for entry in neighbours]
    return max(pieces, key=attrgetter("num_tokens"))


class _Walk:
    """Covers as much as possible with as few pieces as possible, offered by ascending start."""

    def __init__(self, first: int) -> None:
        self._taken: list[IndexPiece] = []
        self._end = first
        self._best: IndexPiece | None = None

    def can_leave_at(self, position: int) -> bool:
        """Is `position` covered, so that a piece may start there? Settles what lies before it."""
        while position > self._end and self._best is not None:
            self._take(self._best)
        return position <= self._end

    def offer(self, piece: IndexPiece) -> None:
        if piece.stop > (self._best.stop if self._best is not None else self._end):
            self._best = piece

    def pieces(self) -> list[IndexPiece]:
        if self._best is not None:
            self._take(self._best)
        return self._taken

    def _take(self, piece: IndexPiece) -> None:
        if self._taken:
            last = self._taken[-1]
            self._taken[-1] = IndexPiece(last.entry, piece.entry.start - last.entry.start)
        self._taken.append(piece)
        self._end, self._best = piece.stop, None
