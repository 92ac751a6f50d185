"""Do the documents hold an answer at all? Two plain signs of it, weighed as measured.

How near the nearest passage lies to the question, and how many of the question's words the best part
holds.  `scripts/rag_support.py` measured what follows, on questions about library A asked of A and of
others; half of the questions chose the weights and the threshold, the other half judged them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kdn.rag.answering import words_of

__all__ = ["Support", "coverage", "support_of"]


@dataclass(frozen=True)
class _Weights:
    """Of a logistic regression; the threshold is on its sum."""

    similarity: float
    coverage: float
    constant: float
    threshold: float


_MINILM_L6 = "bert-60a9118a9888b200"
_WEIGHTS = {_MINILM_L6: _Weights(22.44, 11.66, -13.39, -0.558)}
"""By the embedder whose similarities were measured; any other's mean something else."""


@dataclass(frozen=True)
class Support:
    """What speaks for an answer in the documents."""

    similarity: float
    """Cosine of the question and the nearest passage."""
    coverage: float
    """The share of the question's words that the best part holds."""
    probability: float
    """That the documents hold an answer, where as many questions have one there as have none."""
    is_enough: bool


def coverage(question: str, texts: Iterable[str]) -> float:
    """The share of the question's words, common ones left out, that stand in `texts` together."""
    asked = words_of(question)
    there = frozenset[str]().union(*map(words_of, texts))
    return len(asked & there) / (len(asked) or 1)


def support_of(embedder: str, similarity: float, covered: float) -> Support | None:
    """The two signs weighed; None for an embedder that was not measured."""
    weights = _WEIGHTS.get(embedder)
    if weights is None:
        return None
    total = weights.similarity * similarity + weights.coverage * covered + weights.constant
    probability = 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))
    return Support(similarity, covered, probability, total >= weights.threshold)
