"""Rows that the question looks at: the question reads the chunks as stored, before they are mended.

The look costs what computing the question alone costs, up to the last layer that is looked at.  It
leaves every stored column in its place, so that the pass behind it loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kdn.core import Choose, ColumnScale, GivenRows, LayerView, Plan, RowRule
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.rules import chosen_rows

__all__ = ["AskedRows", "Mass"]

_NOTHING = 1e-30
_MOST_ROWS = 32
"""The question's last rows speak for it: they have seen all of it."""


class Mass:
    """Observer: adds up the attention that the asking rows put on every column."""

    def __init__(self, layout: BlendLayout, first: int, every: int) -> None:
        self._layout = layout
        self._first, self._every = first, every
        self.total = torch.zeros(layout.num_tokens)

    def __call__(self, view: LayerView) -> None:
        if view.layer < self._first or (view.layer - self._first) % self._every:
            return
        start = max(self._layout.asking, self._layout.num_tokens - _MOST_ROWS)
        rows = torch.nonzero(view.rows >= start).flatten()
        self.total += view.attend(rows, torch.arange(self._layout.num_tokens)).cpu()


@dataclass(frozen=True)
class AskedRows:
    """The rows that the question attends to most, over the chunks as stored."""

    skip: float = 1 / 2
    """The share of the layers, from the first on, that is not looked at: theirs is of another kind."""
    every: int = 2
    """Look at every so many of the others."""

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        if not count:
            return base
        if count >= layout.num_reused:
            return chosen_rows(base, layout, layout.reused)
        first = int(self.skip * len(base.rows))
        last = range(first, len(base.rows), self.every)[-1]
        seen = Mass(layout, first, self.every)

        def then() -> Plan:
            best = torch.topk(seen.total[layout.reused], count).indices
            return chosen_rows(replace(base, stored=()), layout, layout.reused[best])

        asking = _asking_only(base, layout)
        rows = _up_to(last, asking.rows)
        return replace(asking, rows=rows, observers=(seen,), logits=(), then=then)


def _up_to(last: int, rows: tuple[RowRule, ...]) -> tuple[RowRule, ...]:
    """Nobody goes on behind the last layer that is looked at; the store's columns are placed there
    all the same."""
    if last == 0:  # layer 0 has no rows before it to choose from
        return rows
    return (*rows[:last], Choose(_leading, 0), *rows[last + 1 :])


def _leading(view: LayerView, count: int) -> torch.Tensor:
    return torch.arange(view.rows.numel())[:count]


def _asking_only(base: Plan, layout: BlendLayout) -> Plan:
    """Computes what asks, and nothing else; columns that nothing is known of yet are not seen."""
    unknown = tuple(layout.forced[layout.forced < layout.asking].tolist())
    if not unknown:
        return base
    asking = GivenRows(tuple(range(layout.asking, layout.num_tokens)))
    scale = tuple(ColumnScale(layer, unknown, _NOTHING) for layer in range(len(base.rows)))
    return replace(base, rows=(asking, *base.rows[1:]), scale=scale)
