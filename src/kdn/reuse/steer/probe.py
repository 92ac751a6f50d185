"""Probe, then steer: the sentence of the documents that the question attends to most, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdn.core import LayerView

__all__ = ["LookedAt", "SentenceProbe"]

_MOST_ROWS = 32
"""Of the question only the last rows are observed: they have seen all of it."""
_EVERY = 2
"""Observe one in so many of the layers of the upper half, as blending's probe pass does."""


@dataclass(frozen=True)
class LookedAt:
    """The sentence with the most attention a token, and three measures from 0 to 1 of how clear that is."""

    number: int
    """Which of the sentences it is."""
    sentence: range
    lead: float
    """How far the second best falls short of it, as a part of it: 0 is a tie, 1 is no rival."""
    share: float
    """Its part of the attention to all sentences."""
    votes: float
    """The part of the observed layers that each would name it alone."""


@dataclass
class SentenceProbe:
    """Observer: sums the attention that the question's rows pay to each sentence."""

    sentences: Sequence[range]
    question_from: int
    num_layers: int
    question_to: int | None = None
    """Rows at this position and behind it are not the question's; None: all are."""
    asked: dict[int, Tensor] = field(init=False)
    """[sentences] of each observed layer."""

    def __post_init__(self) -> None:
        self.asked = {}
        self._columns = torch.tensor([column for one in self.sentences for column in one])
        self._sizes = [len(one) for one in self.sentences]

    def __call__(self, view: LayerView) -> None:
        first = self.num_layers // 2
        if view.layer < first or (view.layer - first) % _EVERY or not view.rows.numel():
            return
        stop = int(view.rows[-1]) + 1
        if self.question_to is not None:
            stop = min(stop, self.question_to)
        start = max(self.question_from, stop - _MOST_ROWS)
        at = torch.nonzero((view.rows >= start) & (view.rows < stop)).flatten()
        if at.numel():
            seen = torch.split(view.attend(at, self._columns).cpu(), self._sizes)
            found = torch.stack([part.sum() for part in seen])
            self.asked[view.layer] = self.asked.get(view.layer, torch.zeros_like(found)) + found

    def found(self) -> LookedAt | None:
        """What the question looks at; None where nothing was observed."""
        if not self.asked:
            return None
        asked = torch.stack(list(self.asked.values()))
        total = asked.sum(dim=0)
        if not float(total.sum()):
            return None
        a_token = total / torch.tensor(self._sizes)
        best = int(a_token.argmax())
        second = max((float(one) for i, one in enumerate(a_token) if i != best), default=0.0)
        named = (asked / torch.tensor(self._sizes)).argmax(dim=1)
        return LookedAt(
            best,
            self.sentences[best],
            lead=1 - second / float(a_token[best]),
            share=float(total[best] / total.sum()),
            votes=float((named == best).float().mean()),
        )
