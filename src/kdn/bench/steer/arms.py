"""Ways to steer: which KV the question runs over, and which columns it attends to more.

`published` and its twins steer the context beforehand, all others at read time.  Each selection has a
twin of random columns, or a random sentence, of the same size; oracles know the answer's sentence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kdn.api.steered import scoring_heads
from kdn.bench.steer.case import SteerCase, Steered, random_like
from kdn.bench.steer.selections import SELECTIONS
from kdn.core import ColumnScale
from kdn.engine import HeldKV
from kdn.rag.answering import words_of
from kdn.reuse.steer import (
    LOOK_WEIGHT,
    SteerRecipe,
    recipe_scales,
    score_text,
    top_columns,
)

__all__ = ["ANSWERED", "ARMS"]


def _plain(case: SteerCase) -> Steered:
    return Steered(case.context.held)


def _other_prompt(case: SteerCase) -> Steered:
    return Steered(case.lab.context(case.item, 1).held, prompt=case.lab.prompt(case.item, 1))


def _oracle(case: SteerCase, weight: float = LOOK_WEIGHT) -> Steered:
    return case.stressed(sorted(case.oracle), weight)


def _random_sentence(case: SteerCase) -> Steered:
    return case.stressed(case.draw().choice(case.context.sentences))


def _look(case: SteerCase) -> Steered:
    """As `steer="look-always"`, over the context as it is stored."""
    seen = case.lab.look(case.context, case.prompt)
    if seen is None:
        return case.stressed(())
    sure = {"lead": seen.lead, "share": seen.share, "votes": seen.votes}
    return replace(case.stressed(seen.sentence), chosen=seen.number, sure=sure)


def _retrieved(case: SteerCase) -> Steered:
    """The sentence nearest to the question by embedding; without an embedder, by rare words."""
    if case.embedder is None:
        return _by_words(case)
    embed = case.embedder.embed
    sentences = case.once("vectors", lambda: torch.tensor(embed(case.texts)))
    near = (sentences @ torch.tensor(embed([case.item.question])[0])).tolist()
    best = near.index(max(near))
    second = max((one for i, one in enumerate(near) if i != best), default=0.0)
    sure = {"lead": near[best] - second, "cosine": near[best]}
    return replace(case.stressed(case.context.sentences[best]), chosen=best, sure=sure)


def _by_words(case: SteerCase) -> Steered:
    """The sentence that shares most of the question's words, rare ones counting more."""
    own = [words_of(text) for text in case.texts]
    counts = Counter(word for words in own for word in words)
    asked = words_of(case.item.question)
    worth = [sum(math.log(1 + len(own) / counts[w]) for w in asked & words) for words in own]
    return case.stressed(case.context.sentences[worth.index(max(worth))])


def _asked_for(case: SteerCase) -> Steered:
    """AutoPASTA-like: a first call names the key sentence, which the second stresses."""
    question = (
        f"{case.item.question}\n\nDo not answer. Copy the one sentence from the passages that holds"
        " the answer, word for word."
    )
    prompt = case.lab.prompt(case.item, question=question)
    said = words_of(case.lab.answer(prompt, case.context.held, most=32))
    shared = [len(said & words_of(text)) / (1 + len(words_of(text))) ** 0.5 for text in case.texts]
    return case.stressed(case.context.sentences[shared.index(max(shared))])


# --- without the question ------------------------------------------------------------------------


def _two_passes(case: SteerCase, recipe: SteerRecipe) -> list[Tensor]:
    """Column sums of the context's documents behind either prompt."""
    context, lab = case.context, case.lab
    own = context.prompt.token_ids[context.columns.start : context.columns.stop]
    heads = scoring_heads(lab.service, recipe)
    with torch.inference_mode():
        return score_text(lab.captured, lab.num_layers, heads, own)


def _edit(
    case: SteerCase,
    name: str,
    recipe: SteerRecipe,
    choose: Callable[[list[Tensor]], Sequence[Sequence[int]]],
) -> Steered:
    """The context computed with its chosen columns scaled, and the question over it likewise."""

    def make() -> tuple[HeldKV, tuple[ColumnScale, ...]]:
        columns = choose(case.once("passes", partial(_two_passes, case, recipe)))
        scale = recipe_scales(columns, recipe, case.context.columns.start)
        tokens = case.context.prompt.token_ids[: case.context.since]
        return case.lab.store(tokens, scale, case.context.columns.start), scale

    held, scale = case.once(f"edit {name}", make)
    stressed = frozenset(column for one in scale for column in one.columns)
    return Steered(held, scale, columns=stressed)


def _published(case: SteerCase, *, settings: Mapping[str, object], random: bool) -> Steered:
    """The recipe's columns; or random ones, as many at each layer and where those are."""
    recipe = case.recipe(**settings)
    draw = case.draw_of_context()

    def choose(sums: list[Tensor]) -> Sequence[Sequence[int]]:
        columns = top_columns(sums, recipe)
        return random_like(columns, sums[0].shape[1], recipe.sinks, draw) if random else columns

    return _edit(case, f"published {random} {sorted(settings.items())}", recipe, choose)


def _sinks(case: SteerCase) -> Steered:
    """The text's first columns alone, which sums favour."""
    recipe = case.recipe()
    first = tuple(range(recipe.sinks))
    return _edit(case, "sinks", recipe, lambda sums: [first] * len(sums[0]))


def _rare_tokens(case: SteerCase) -> Steered:
    """TF-IDF: tokens that this text has often and the other sentences rarely, as many as published."""
    recipe = case.recipe()
    span = case.context.columns
    ids = case.context.prompt.token_ids[span.start : span.stop]
    own = [set(ids[s.start - span.start : s.stop - span.start]) for s in case.context.sentences]
    spread = Counter(token for one in own for token in one)
    often = Counter(ids)
    worth = torch.tensor([often[t] * math.log(len(own) / max(spread[t], 1)) for t in ids])

    def choose(sums: list[Tensor]) -> list[tuple[int, ...]]:
        sizes = [len(one) for one in top_columns(sums, recipe)]
        order = worth.argsort(descending=True, stable=True).tolist()
        return [tuple(sorted(order[:size])) for size in sizes]

    return _edit(case, "rare", recipe, choose)


_PUBLISHED: dict[str, Mapping[str, object]] = {
    "published": {},
    "published-literal": {"literal": True},
    "published-union": {"combine": "union"},
    "published-one-pass": {"combine": "first"},
    "published-3": {"weight": 3.0},
}
"""Settings of the recipe by name; each has a twin of random columns."""
ARMS: dict[str, Callable[[SteerCase], Steered]] = {
    "plain": _plain,
    "other-prompt": _other_prompt,
    "oracle": _oracle,
    "oracle-10": partial(_oracle, weight=10.0),
    "random-sentence": _random_sentence,
    "look-always": _look,
    "retrieved": _retrieved,
    "rare-words": _by_words,
    "two-calls": _asked_for,
    **{
        f"{name}-random" if random else name: partial(_published, random=random, settings=settings)
        for name, settings in _PUBLISHED.items()
        for random in (False, True)
    },
    "sinks": _sinks,
    "rare-tokens": _rare_tokens,
    **SELECTIONS,
}
"""Every way, by name."""
ANSWERED = (
    "plain",
    "oracle",
    "random-sentence",
    "look-always",
    "retrieved",
    "published",
)
"""Those whose answers are generated too."""
