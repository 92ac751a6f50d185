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
        return self.start + sum(reader.num_tokens for reader in self.readers)

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
        prelude = _prelude(prompt)
        documents = [(one, first) for one, first in self._documents(prompt) if first >= start]
        with ExitStack() as opened:
            runs = self._open([self._after_prelude(prelude, one) for one, _ in documents], opened)
            chunks = [
                Chunk(first, run) for (_, first), run in zip(documents, runs, strict=True) if run
            ]
            missing = [
                (first + cut, hit)
                for (one, first), run in zip(documents, runs, strict=True)
                for cut, hit in self._elsewhere(one, sum(reader.num_tokens for reader in run))
            ]
            found = self._open([[hit] for _, hit in missing], opened)
            for (at, _), run in zip(missing, found, strict=True):
                chunks += [Chunk(at, run, alone=False)] if run else []
            opened.pop_all()
        return _joined(sorted(chunks, key=lambda chunk: chunk.start))

    def _open(
        self, runs: Sequence[Sequence[BlockHit]], opened: ExitStack
    ) -> list[tuple[Reader, ...]]:
        """Of each run the leading blocks that open; they are closed with `opened`."""
        found = open_runs(self.store.tiers, runs, self.store.open)
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

    def _elsewhere(self, segment: Segment, num_stored: int) -> Iterator[tuple[int, BlockHit]]:
        """Blocks of the segment behind its first `num_stored` tokens that were computed elsewhere, and
        where in it each begins."""
        behind = -(-num_stored // BLOCK_TOKENS) * BLOCK_TOKENS
        for cut in range(behind, segment.num_tokens, BLOCK_TOKENS):
            hit = self._anywhere(segment.token_ids[cut : cut + BLOCK_TOKENS])
            if hit is not None:
                yield cut, hit

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
