"""Finding the documents of a prompt in the store, wherever they stood when they were computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    BlockId,
    ChainHash,
    ColumnScale,
    Fingerprint,
    Prompt,
    Recipe,
    Role,
    Segment,
    TokenIds,
)
from kdn.reuse.stored_run import longest_run, whole_run
from kdn.store import BlockHit, Match, Reader, Store, open_runs

__all__ = ["Chunk", "StoredDocuments"]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring blocks that stand at [start, stop) of the prompt, open for reading."""

    start: int
    readers: tuple[Reader, ...]
    alone: bool = True
    """Was it computed directly after the prelude? Else after other texts, as here."""

    @property
    def stop(self) -> int:
        return self.start + _tokens(self.readers)

    @property
    def scales(self) -> tuple[ColumnScale, ...]:
        """The columns that were steered when it was computed, where they stand in the prompt."""
        found, at = list[ColumnScale](), self.start
        for reader in self.readers:
            moved = at - reader.id.start
            found += [
                replace(s, columns=tuple(c + moved for c in s.columns)) for s in reader.scales
            ]
            at += reader.num_tokens
        return tuple(found)


@dataclass(frozen=True)
class _Wanted:
    """Stored blocks of a document that stands at `first` in the prompt, from its token `at` on."""

    document: Segment
    first: int
    at: int
    hits: Sequence[BlockHit]
    alone: bool = True

    @property
    def num_tokens(self) -> int:
        return sum(hit.num_tokens for hit in self.hits)


@dataclass(frozen=True)
class StoredDocuments:
    """One model's blocks under one salt, as they can be used for prompts."""

    store: Store
    fingerprint: Fingerprint
    salt: str
    recipe: Recipe = EXACT
    """Documents that were computed by it after the prelude, as a whole, come before all others."""
    reads: Sequence[Recipe] = (EXACT,)
    """What may stand in for computing, the best first: exact blocks, and those of codecs that are allowed."""
    before: int | None = None
    """Documents that end behind it are passed over: from there on rows are another adapter's."""

    def chunks(self, prompt: Prompt, start: int) -> list[Chunk]:
        """Every stored document after position `start`, opened; neighbours are joined.

        A document counts as stored where it was computed directly after the prompt's own prelude, and
        else block by block wherever it was computed (content ids).  What a network delivers is opened
        together.
        """
        prelude, wanted = _prelude(prompt), list[_Wanted]()
        for one, first in self._documents(prompt):
            if first >= start:
                wanted.append(_Wanted(one, first, 0, self._after_prelude(prelude, one)))
                wanted += self._elsewhere(one, first, wanted[-1].num_tokens, one.num_tokens)
        with ExitStack() as opened:
            runs = self._open(wanted, opened)
            instead = [
                found
                for one, run in zip(wanted, runs, strict=True)
                if one.alone and len(run) < len(one.hits)
                for found in self._elsewhere(one.document, one.first, _tokens(run), one.num_tokens)
            ]
            runs += self._open(instead, opened)
            opened.pop_all()
        chunks = [
            Chunk(one.first + one.at, run, one.alone)
            for one, run in zip((*wanted, *instead), runs, strict=True)
            if run
        ]
        return _joined(sorted(chunks, key=lambda chunk: chunk.start))

    def _open(self, wanted: Sequence[_Wanted], opened: ExitStack) -> list[tuple[Reader, ...]]:
        """Of each the leading blocks that open; they are closed with `opened`."""
        found = open_runs(self.store.tiers, [one.hits for one in wanted], self.store.open)
        for reader in chain.from_iterable(found):
            opened.callback(reader.close)
        return [tuple(run) for run in found]

    def lacks(self, prompt: Prompt) -> list[Segment]:
        """The documents that are not stored whole directly after the prelude. Opens nothing."""
        prelude = _prelude(prompt)
        return [
            one
            for one, _ in self._documents(prompt)
            if self._num_after_prelude(prelude, one) < one.num_tokens
        ]

    def made_by_recipe(self, prompt: Prompt) -> int | None:
        """Where the first document begins that is stored by `recipe`; opens nothing."""
        prelude = _prelude(prompt)
        starts = (
            start
            for segment, start in self._documents(prompt)
            if self._by_recipe((*prelude, *segment.token_ids))
        )
        return next(starts, None)

    def _documents(self, prompt: Prompt) -> Iterator[tuple[Segment, int]]:
        """Those that may be reused, and where each begins."""
        before = prompt.num_tokens if self.before is None else self.before
        for segment, start, stop in prompt.spans():
            if segment.role is Role.DOCUMENT and stop <= before:
                yield segment, start

    def _num_after_prelude(self, prelude: TokenIds, segment: Segment) -> int:
        return max(self._match(prelude, segment).num_tokens - len(prelude), 0)

    def _match(self, prelude: TokenIds, segment: Segment) -> Match:
        """What is stored of the segment after the prelude."""
        wanted = (*prelude, *segment.token_ids)
        return self._by_recipe(wanted) or longest_run(
            self.store, self.fingerprint, self.reads, self.salt, wanted
        )

    def _by_recipe(self, wanted: TokenIds) -> Match | None:
        """What is stored by `recipe`, if it is all that is wanted: what begins alike is another text."""
        if not self.recipe.tainted:
            return None
        named = self.store, self.fingerprint, self.recipe, self.salt
        return whole_run(*named, wanted, [len(wanted)])

    def _after_prelude(self, prelude: TokenIds, segment: Segment) -> list[BlockHit]:
        """The leading run of the segment's blocks that were computed after the prelude."""
        at, run = len(prelude), list[BlockHit]()
        for hit in self._match(prelude, segment).hits:
            if hit.id.start + hit.num_tokens <= len(prelude):
                continue
            if hit.id.start != at:
                break
            run.append(hit)
            at += hit.num_tokens
        return run

    def _elsewhere(self, document: Segment, first: int, start: int, stop: int) -> Iterator[_Wanted]:
        """Whole blocks of the document's tokens [start, stop) that were computed elsewhere."""
        behind = -(-start // BLOCK_TOKENS) * BLOCK_TOKENS
        for cut in range(behind, stop, BLOCK_TOKENS):
            hit = self._anywhere(document.token_ids[cut : cut + BLOCK_TOKENS])
            if hit is not None:
                yield _Wanted(document, first, cut, [hit], alone=False)

    def _anywhere(self, tokens: TokenIds) -> BlockHit | None:
        """The best block with these very tokens."""
        here = BlockId(self.fingerprint, EXACT, self.salt, ChainHash(""), 0, tokens)
        found = [
            one
            for one in self.store.find_content(here.content_id)
            if one.fingerprint == self.fingerprint and one.recipe in self.reads
        ]
        best = min(found, key=lambda one: self.reads.index(one.recipe), default=None)
        tier = None if best is None else self.store.tiers.holder(best.key)
        return None if best is None or tier is None else BlockHit(best, best.num_tokens, tier.name)


def _tokens(readers: Iterable[Reader]) -> int:
    return sum(reader.num_tokens for reader in readers)


def _joined(chunks: Iterable[Chunk]) -> list[Chunk]:
    """In order, neighbours of one kind as one."""
    found: list[Chunk] = []
    for chunk in chunks:
        last = found[-1] if found else None
        if last and (last.stop, last.alone) == (chunk.start, chunk.alone):
            found[-1] = Chunk(last.start, (*last.readers, *chunk.readers), last.alone)
        else:
            found.append(chunk)
    return found


def _prelude(prompt: Prompt) -> TokenIds:
    """The tokens that the prompt's documents are stored after: its first segment, if that is a prelude."""
    first = prompt.segments[0]
    return first.token_ids if first.role is Role.PRELUDE else ()
