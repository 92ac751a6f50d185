"""Which of the reused rows are recomputed: one interface, and every published rule.

A rule gets a base plan (tokens, prefix, stored chunks) and gives it rows.  Rules that do
not depend on the prompt's values name the rows beforehand; `Deviation` narrows them down inside the
pass; rules that ask the question first add a probe pass (`Plan.then`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdn.core import ALL_ROWS, Choose, GivenRows, LayerView, Plan, RowRule
from kdn.reuse.blend.layout import BlendLayout

__all__ = ["BlendRule", "Deviation", "Leading", "Naive", "RandomRows", "recompute_rows"]


class BlendRule(Protocol):
    """Turns a base plan into one that also recomputes rows of the chunks."""

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        """`base` with `count` of the layout's reused rows recomputed, as averaged over layers."""


def recompute_rows(base: Plan, layout: BlendLayout, chosen: Tensor) -> Plan:
    """`base` computing the chosen positions at every layer, and all that must be computed."""
    return replace(base, rows=(GivenRows(layout.with_forced(chosen)), *_rest(base)))


def _rest(base: Plan) -> tuple[RowRule, ...]:
    """One rule for each layer after layer 0: go on with the same rows."""
    assert len(base.rows) > 1, "a base plan names its layers"
    return (ALL_ROWS,) * (len(base.rows) - 1)


@dataclass(frozen=True)
class Naive:
    """No row is recomputed: reuse with position recovery only (PromptCache, 2311.04934)."""

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        return base


@dataclass(frozen=True)
class RandomRows:
    """Rows drawn evenly at random: what any other rule must beat."""

    seed: int = 0

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        random = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(layout.num_reused, generator=random)[:count]
        return recompute_rows(base, layout, layout.reused[drawn])


@dataclass(frozen=True)
class Leading:
    """The first rows of every chunk, where it has not yet seen itself (EPIC, 2410.15332)."""

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        depth = torch.cat([torch.arange(stop - start) for start, stop in layout.chunks])
        first = torch.argsort(depth, stable=True)[:count]
        return recompute_rows(base, layout, layout.reused[first])


@dataclass(frozen=True)
class Deviation:
    """Rows whose fresh K or V differs most from the stored (CacheBlend, 2405.16444, section 4.3).

    Every row is computed up to layer `check`; there those with the largest squared difference,
    summed over heads and dimensions, go on.  `gradual` chooses again at every later layer, from
    ratio + 0.03 down to ratio - 0.03, so that the sets are nested and the mean is the ratio.
    """

    of: Literal["v", "k", "kv"] = "v"
    check: int = 1
    gradual: bool = False

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        num_layers = len(base.rows)
        if count >= layout.num_reused:
            return recompute_rows(base, layout, layout.reused)
        everyone = Choose(_Everyone(), layout.num_tokens - layout.num_prefix)
        select = _Differing(self.of, layout)
        forced = layout.forced.numel()
        rows: list[RowRule] = [everyone] * self.check
        for layer in range(self.check, num_layers):
            if layer > self.check and not self.gradual:
                rows.append(ALL_ROWS)
                continue
            place = (layer - self.check) / max(num_layers - 1 - self.check, 1)
            slack = int((0.03 - 0.06 * place) * layout.num_reused) if self.gradual else 0
            recomputed = min(max(count + slack, 0), layout.num_reused)
            rows.append(Choose(select, forced + recomputed))
        return replace(base, rows=tuple(rows))


class _Everyone:
    def __call__(self, view: LayerView, count: int) -> Tensor:
        return torch.arange(count)


class _Differing:
    """The forced rows, and of the others those that differ most from what was stored."""

    def __init__(self, of: Literal["v", "k", "kv"], layout: BlendLayout) -> None:
        self._of = of
        self._forced = torch.ones(layout.num_tokens, dtype=torch.bool)
        self._forced[layout.reused] = False

    def __call__(self, view: LayerView, count: int) -> Tensor:
        assert view.stored is not None, "a blend has stored chunks"
        worth = deviation(view, self._of).cpu()
        worth[self._forced[view.rows]] = float("inf")
        return torch.topk(worth, count).indices.sort().values


def deviation(view: LayerView, of: Literal["v", "k", "kv"]) -> Tensor:
    """[rows] fp32: squared difference of fresh and stored, over heads and dimensions."""
    assert view.stored is not None, "a blend has stored chunks"
    at = view.rows.to(view.stored.v.device)
    total = torch.zeros(view.rows.numel(), device=view.stored.v.device)
    if "v" in of:
        total += (view.fresh.v.float() - view.stored.v[at].float()).square().sum(dim=(1, 2))
    if "k" in of:
        total += (view.fresh.k.float() - view.stored.k[at].float()).square().sum(dim=(1, 2))
    return total
