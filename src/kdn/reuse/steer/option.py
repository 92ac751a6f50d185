"""What a request says to be steered: columns of its prompt, or sentences to look at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdn.core import EXACT, Prompt, Recipe, Request
from kdn.errors import BadInput
from kdn.model import PlacedText
from kdn.reuse.steer.recipe import SteerRecipe
from kdn.reuse.steer.sentences import sentence_positions
from kdn.reuse.steer.spans import ColumnFactors, column_factors, spans_of

__all__ = [
    "AFTER",
    "LOOKS",
    "LOOK_SHARE",
    "LOOK_WEIGHT",
    "Steer",
    "recipe_of",
    "steer_of",
    "steered_from",
]

LOOK_SHARE = 0.2
"""A look acts where its sentence gets at least this share of the attention to all sentences. Chosen on the
half `fit` of the benchmark's data (docs/steer.md): a look that stresses the wrong sentence harms."""
LOOKS = {"look": LOOK_SHARE, "look-always": 0.0}
"""The words for: stress the sentence that the question looks at; by word, the least share it must get."""
_WORDS = ", ".join(map(repr, LOOKS))
AFTER = 2 / 3
"""Steering holds in the layers from this share on: those before move answers as random columns do."""
LOOK_WEIGHT = 3.0
"""How much louder the sentence is made that a look has found."""


@dataclass(frozen=True)
class Steer:
    """Option of steering: attention of the last message and of the answer is scaled by column.

    `factors` are known beforehand; of `sentences`, runs of positions in documents, the one that the
    question attends to most, token for token, is scaled by `weight`.  What stands before the last
    message is computed, or taken from the store, as if nothing were steered.
    """

    factors: ColumnFactors = ()
    sentences: tuple[range, ...] = ()
    least_share: float = 0.0
    """Of the attention to all sentences the best one must get so much; if not, none is scaled."""
    weight: float = LOOK_WEIGHT
    after: float = AFTER
    asked_to: int | None = None
    """A look observes rows before this position only; None: all of the last message."""
    recipe: SteerRecipe | None = None
    """Texts that were steered beforehand by it are taken in place of plain ones, as a prompt's beginning."""


def steer_of(
    given: object,
    places: Sequence[PlacedText],
    named: Callable[[str], SteerRecipe] | None = None,
) -> Steer:
    """What a caller asks for, a word of `LOOKS`, marked spans, a recipe or its name, as a request's option.

    `named` finds recipes.  Raises BadInput for what is none of them, for a look without documents, and
    for spans as `column_factors`.
    """
    if isinstance(given, SteerRecipe):
        return Steer(recipe=given)
    if isinstance(given, str):
        return _look(places, LOOKS[given]) if given in LOOKS else _named(given, named)
    return Steer(column_factors(spans_of(given), places))


def _look(places: Sequence[PlacedText], least_share: float) -> Steer:
    sentences = sentence_positions(places)
    if not sentences:
        raise BadInput("a look needs documents to look at; give some, or mark spans")
    return Steer(sentences=sentences, least_share=least_share)


def _named(name: str, named: Callable[[str], SteerRecipe] | None) -> Steer:
    if named is None:
        raise BadInput(f"steer is {name!r:.60}; it can be {_WORDS} or a list of spans")
    try:
        return Steer(recipe=named(name))
    except BadInput as error:
        raise BadInput(
            f"{error} (steer can be {_WORDS} or a list of spans besides a recipe's name)"
        ) from error


def recipe_of(request: Request) -> Recipe:
    """What names the stored documents that a blended request asks for: an experiment (docs/steer.md).

    Raises BadInput for a recipe whose factors are in V: rows that are computed again would lack them.
    """
    steer = request.option(Steer)
    recipe = None if steer is None else steer.recipe
    if recipe is None:
        return EXACT
    if recipe.literal and recipe.heads is None:
        raise BadInput(
            "documents that a literal recipe has steered hold its factors in V, and blending computes"
            " some rows again without them: blend with a recipe that is not literal"
        )
    return recipe.taint


def steered_from(prompt: Prompt, factors: ColumnFactors) -> int:
    """The first position whose row sees scaled columns.

    It is where the last message begins or, if marks reach into that message, the position after the
    last mark; the prompt's last row always is one of them.
    """
    last = prompt.num_tokens - prompt.segments[-1].num_tokens
    marked = max((column + 1 for column, _ in factors), default=0)
    return min(max(last, marked), prompt.num_tokens - 1)
