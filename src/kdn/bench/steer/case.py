"""One item over its context, and what an arm makes of it: the KV that is read, and what is stressed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from kdn.bench.steer.fitted import SteerFit
from kdn.bench.steer.items import SteerItem
from kdn.bench.steer.lab import GoldScore, SteerContext, SteerLab
from kdn.core import ColumnScale, Prompt
from kdn.engine import HeldKV
from kdn.reuse.steer import AFTER, LOOK_WEIGHT, SteerRecipe, scales_of

if TYPE_CHECKING:
    from kdn.rag.minilm import MiniLm

__all__ = ["SteerCase", "Steered", "random_like"]

T = TypeVar("T")


@dataclass(frozen=True)
class Steered:
    """What an arm makes of a case."""

    held: HeldKV
    scale: tuple[ColumnScale, ...] = ()
    prompt: Prompt | None = None
    """In place of the case's own."""
    columns: frozenset[int] = frozenset()
    """Those that are stressed anywhere."""
    chosen: int | None = None
    """The sentence that was taken, by its number."""
    sure: Mapping[str, float] = field(default_factory=dict)
    """How clear the choice is, by measure."""


@dataclass
class SteerCase:
    """One item over its context."""

    lab: SteerLab
    item: SteerItem
    embedder: MiniLm | None
    seed: int
    fit: SteerFit
    """What was learned on the half that settings are chosen on."""
    _scored: dict[tuple[ColumnScale, ...], GoldScore] = field(default_factory=dict, init=False)
    """By scales, over the context as it is stored: arms that choose one sentence are one computation."""

    @cached_property
    def context(self) -> SteerContext:
        return self.lab.context(self.item)

    @cached_property
    def prompt(self) -> Prompt:
        return self.lab.prompt(self.item)

    @cached_property
    def oracle(self) -> frozenset[int]:
        """The columns of the answer's sentences."""
        places = self.context.places
        return frozenset(
            position
            for document, start, stop in self.item.spans
            for position, _ in places[document].shares(start, stop)
        )

    @cached_property
    def texts(self) -> list[str]:
        """The sentences as texts."""
        decode, ids = self.lab.service.model.tokenizer.decode, self.context.prompt.token_ids
        return [decode(ids[one.start : one.stop]) for one in self.context.sentences]

    def gold(self, steered: Steered) -> GoldScore:
        """How likely the item's right answer is made."""
        prompt, answer = steered.prompt or self.prompt, self.item.answers[0]
        if steered.held is not self.context.held or steered.prompt is not None:
            return self.lab.score(prompt, steered.held, answer, steered.scale)
        if steered.scale not in self._scored:
            found = self.lab.score(prompt, steered.held, answer, steered.scale)
            self._scored[steered.scale] = found
        return self._scored[steered.scale]

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What is made of the context without the question: once, whichever questions follow."""
        return self.lab.once(self.item.documents, name, make)

    def draw_of_context(self) -> random.Random:
        """The same for all questions over the context."""
        return random.Random(f"{self.seed} {self.item.documents}")

    def draw(self) -> random.Random:
        """The same for every run, another for every item."""
        return random.Random(f"{self.seed} {self.item.name}")

    def stressed(self, columns: Sequence[int], weight: float = LOOK_WEIGHT) -> Steered:
        """These columns at read time, as a request would have them."""
        factors = tuple((column, weight) for column in sorted(columns))
        scale = scales_of(factors, AFTER, self.lab.num_layers)
        return Steered(self.context.held, scale, columns=frozenset(columns))

    def recipe(self, **settings: object) -> SteerRecipe:
        return SteerRecipe(self.lab.service.model.fingerprints.of(None), **settings)  # type: ignore[arg-type]


def random_like(
    columns: Sequence[Sequence[int]], num_columns: int, sinks: int, draw: random.Random
) -> list[tuple[int, ...]]:
    """As many columns a layer, each drawn from the same tenth of the text as the one it stands for."""
    found = []
    for own in columns:
        taken: set[int] = set()
        for column in own:
            tenth = column * 10 // num_columns
            low = max(-(-tenth * num_columns // 10), sinks)
            high = max(-(-(tenth + 1) * num_columns // 10), low + 1)
            free = [c for c in range(low, min(high, num_columns)) if c not in taken] or [column]
            taken.add(draw.choice(free))
        found.append(tuple(sorted(taken)))
    return found
