"""Libraries over the question sets, what retrieval finds for each question, and Poisson arrivals."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdn.api import Kdn
from kdn.bench.common.result import BenchOptions
from kdn.bench.rag.questions import BenchQuestion, QuestionSet
from kdn.rag import Cutting, Library, LibrarySettings, Part
from kdn.rag.metis import MAX_CHUNKS, Method, RagConfiguration

__all__ = ["CUTTING", "AskedQuestion", "arrivals", "find_all", "is_stored", "recall"]

CUTTING = Cutting(passage_tokens=128, part_tokens=256)


@dataclass(frozen=True)
class AskedQuestion:
    """A question with the parts that retrieval finds, best first; `gold` are places among them."""

    question: BenchQuestion
    parts: tuple[Part, ...]
    gold: frozenset[int]
    num_gold: int
    """Gold parts in the whole library; 0 where the data set marks none."""

    def copied(self, number: int) -> AskedQuestion:
        """The same, asked of another copy of the library, whose parts are stored or not by themselves."""
        parts = tuple(replace(part, key=f"{part.key}/{number}") for part in self.parts)
        return replace(self, parts=parts)


def find_all(
    k: Kdn, sets: Sequence[QuestionSet], folder: Path, options: BenchOptions
) -> list[AskedQuestion]:
    """Every question of every set, over the set's own library."""
    found: list[AskedQuestion] = []
    for one in sets:
        options.say(f"taking in {len(one.documents)} documents of {one.name}")
        library = Library.open(
            folder / one.name, k.embedder, k.model.tokenizer.encode, options.clock,
            LibrarySettings(CUTTING),
        )  # fmt: skip
        library.add(one.documents)
        parts = list(library.parts())
        found += [_asked(library, parts, question) for question in one.questions]
    return found


def _asked(library: Library, parts: Sequence[Part], question: BenchQuestion) -> AskedQuestion:
    hits = tuple(library.context(question.text, max_tokens=sys.maxsize, max_parts=MAX_CHUNKS))
    gold = frozenset(place for place, part in enumerate(hits) if question.is_gold(part))
    total = sum(question.is_gold(part) for part in parts) if question.evidence else 0
    return AskedQuestion(question, hits, gold, total)


def recall(asked: AskedQuestion, chosen: RagConfiguration) -> float | None:
    """The share of the gold that reaches the call which gives the answer; None where none is marked.

    A question that needs no joint reasoning needs one gold part, others all of them.  `map_rerank` and
    a quote answer from one part.
    """
    if not asked.num_gold:
        return None
    read = chosen.ordered(range(len(asked.parts) or MAX_CHUNKS))
    found = sum(place in asked.gold for place in read)
    if chosen.method in (Method.MAP_RERANK, Method.EXTRACT):
        found = min(found, 1)
    needed = asked.num_gold if asked.question.profile.is_joint else 1
    return min(found / needed, 1.0)


def is_stored(part: Part, share: float, seed: int) -> bool:
    """Is the part one of the share that is stored beforehand? The same for all arms."""
    return random.Random(f"{seed}/{part.key}").random() < share


def arrivals(count: int, per_s: float, seed: int) -> list[float]:
    """`count` arrivals of a Poisson process, from 0 on."""
    rng, now, found = random.Random(seed), 0.0, list[float]()
    for _ in range(count):
        found.append(now)
        now += rng.expovariate(per_s)
    return found
