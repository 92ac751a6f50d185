"""Rows that the question attends to: a probe pass of the question over the chunks as stored.

The probe pass costs what computing the question alone costs, up to the last layer observed.  It
leaves every stored column in its place, so that the pass after it loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdn.core import Choose, ColumnScale, GivenRows, LayerView, Plan, RowRule
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.recomputed_rows import recompute_rows

__all__ = ["NOTHING", "AttendedRows", "QuestionAttention", "asking_only"]

NOTHING = 1e-30
"""The factor of columns that are not to be seen."""
_MOST_ROWS = 32
"""Only the question's last rows are observed: they have seen all of it."""


class QuestionAttention:
    """Observer: sums the attention that the question's rows pay to every column."""

    def __init__(self, layout: BlendLayout, first: int, every: int) -> None:
        self._layout = layout
        self._first, self._every = first, every
        self.by_layer: dict[int, Tensor] = {}
        """[columns] fp32 of each observed layer."""

    @property
    def total(self) -> Tensor:
        """[columns] fp32, summed over the observed layers."""
        return sum(self.by_layer.values(), torch.zeros(self._layout.num_tokens))

    def __call__(self, view: LayerView) -> None:
        if view.layer < self._first or (view.layer - self._first) % self._every:
            return
        start = max(self._layout.asking, self._layout.num_tokens - _MOST_ROWS)
        rows = torch.nonzero(view.rows >= start).flatten()
        columns = torch.arange(self._layout.num_tokens)
        self.by_layer[view.layer] = view.attend(rows, columns).cpu()


@dataclass(frozen=True)
class AttendedRows:
    """The rows that the question attends to most, over the chunks as stored."""

    skip: float = 1 / 2
    """The share of the layers, from the first on, that is not observed: their attention says less."""
    every: int = 2
    """Observe one in so many of the others."""

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        if not count:
            return base
        if count >= layout.num_reused:
            return recompute_rows(base, layout, layout.reused)
        first = int(self.skip * len(base.rows))
        last = range(first, len(base.rows), self.every)[-1]
        seen = QuestionAttention(layout, first, self.every)

        def then() -> Plan:
            best = torch.topk(seen.total[layout.reused], count).indices
            return recompute_rows(replace(base, stored=()), layout, layout.reused[best])

        asking = asking_only(base, layout)
        rows = _up_to(last, asking.rows)
        return replace(asking, rows=rows, observers=(seen,), logits=(), then=then)


def _up_to(last: int, rows: tuple[RowRule, ...]) -> tuple[RowRule, ...]:
    """No row goes on after the last observed layer; later layers' stored columns are placed all the
    same."""
    if last == 0:  # layer 0 has no rows before it to choose from
        return rows
    return (*rows[:last], Choose(_leading, 0), *rows[last + 1 :])


def _leading(view: LayerView, count: int) -> Tensor:
    return torch.arange(view.rows.numel())[:count]


def asking_only(base: Plan, layout: BlendLayout) -> Plan:
    """Computes the instruction and question alone; columns that have no KV yet are masked."""
    unknown = tuple(layout.forced[layout.forced < layout.asking].tolist())
    if not unknown:
        return base
    asking = GivenRows(tuple(range(layout.asking, layout.num_tokens)))
    scale = tuple(ColumnScale(layer, unknown, NOTHING) for layer in range(len(base.rows)))
    return replace(base, rows=(asking, *base.rows[1:]), scale=scale, scale_from=0)
