"""Documents in the order in which they help with a query: each is scored alone, by one token.

    documents -> distinct ones -> in the order of where their KV lies -> logits -> ranking

Documents that memory holds are asked about first: meanwhile the disk reads for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kdn.core import Prompt, Usage
from kdn.errors import BadInput
from kdn.rank.frames import Asking
from kdn.rank.judge import Judge
from kdn.rank.layouts import Layout

__all__ = ["RankedDocument", "Ranking", "odds_of", "rank", "rank_by", "worth_asking"]


@dataclass(frozen=True)
class RankedDocument:
    """One document's place: the first of a ranking fits best."""

    index: int
    """Of the document as it was given."""
    score: float
    """0 to 1: how likely the answer is yes, among yes and no."""
    log_odds: float
    """Logit of yes less that of no; -inf for an empty document, which is not asked about."""
    document: str


@dataclass(frozen=True)
class Ranking:
    """Documents, best first, and what it took."""

    results: tuple[RankedDocument, ...]
    prompt_tokens: int = 0
    """Of all prompts that were run; what was given twice was run once."""
    cached_tokens: int = 0
    """Of these, the tokens whose KV came from the store."""

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, place: int) -> RankedDocument:
        return self.results[place]


def odds_of(logits: Sequence[float]) -> float:
    """Log-odds of yes: its logit less that of no, or its logit alone where a template has no `no`."""
    return logits[0] - logits[1] if len(logits) > 1 else logits[0]


def worth_asking(documents: Sequence[str]) -> list[str]:
    """Each distinct text once, in the order of its first place; empty ones are left out."""
    return [text for text in dict.fromkeys(documents) if text.strip()]


def rank_by(
    documents: Sequence[str],
    odds: Mapping[str, float],
    usages: Sequence[Usage],
    top_n: int | None = None,
) -> Ranking:
    """The ranking that log-odds give; among equals the first given stands first.

    A document that `odds` does not have stands last.
    """
    if top_n is not None and top_n < 1:
        raise BadInput(f"top_n is {top_n}; ask for 1 document or more, or leave it out for all")
    scores = [odds.get(text, -math.inf) for text in documents]
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))
    results = tuple(
        RankedDocument(index, _probability(scores[index]), scores[index], documents[index])
        for index in order[:top_n]
    )
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    return Ranking(results, prompt_tokens, sum(usage.cached_tokens for usage in usages))


def rank(
    documents: Sequence[str],
    asking: Asking,
    judge: Judge,
    top_n: int | None = None,
    nearness: Callable[[Prompt], int] | None = None,
) -> Ranking:
    """Score each distinct document once and sort.

    `nearness` says how soon a prompt's KV will be at hand: lower is asked sooner; without it
    documents are asked in their order.  Empty ones are not asked about and stand last.
    """
    distinct = worth_asking(documents)
    prompts = {text: asking.prompt(text) for text in distinct}
    if nearness is not None:
        near = {text: nearness(prompts[text]) for text in distinct}
        distinct.sort(key=near.__getitem__)
    # A document that stands first is all of a prompt's beginning, and each has its own.
    judge = replace(judge, single_use=asking.layout is Layout.DOCUMENT_FIRST)
    asked = judge.logits((prompts[text] for text in distinct), asking.choices)
    found = dict(zip(distinct, asked, strict=True))
    odds = {text: odds_of(logits) for text, (logits, _) in found.items()}
    return rank_by(documents, odds, [usage for _, usage in found.values()], top_n)


def _probability(odds: float) -> float:
    """The logistic function, without overflow."""
    if odds >= 0:
        return 1 / (1 + math.exp(-odds))
    return math.exp(odds) / (1 + math.exp(odds)) if odds > -math.inf else 0.0
