"""Probe, then steer: the sentence of the documents that the question attends to most, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdn.core import LayerView

__all__ = ["SentenceProbe"]

_MOST_ROWS = 32
"""Of the question only the last rows are observed: they have seen all of it."""
_EVERY = 2
"""Observe one in so many of the layers of the upper half, as blending's probe pass does."""


@dataclass
class SentenceProbe:
    """Observer: sums the attention that the question's rows pay to each sentence."""

    sentences: Sequence[range]
    question_from: int
    num_layers: int
    question_to: int | None = None
    """Rows at this position and behind it are not the question's; None: all are."""
    asked: Tensor = field(init=False)
    """[sentences] over the observed layers."""

    def __post_init__(self) -> None:
        self.asked = torch.zeros(len(self.sentences))
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
            self.asked += torch.stack([part.sum() for part in seen])

    def best(self) -> range | None:
        """The sentence with the most attention a token; None where nothing was observed."""
        if not float(self.asked.sum()):
            return None
        return self.sentences[int((self.asked / torch.tensor(self._sizes)).argmax())]
