"""Where to store KV that will be blended: the cheapest tier whose load overlaps with the recompute.

The loading controller's second question (CacheBlend, arXiv 2405.16444, section 5.1): the ratio is
given by quality, the tier is to be chosen.  The first one, a ratio for a given tier, is answered
while serving (`reuse/blend/controller.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdn.cost.model import Workload, bill, load_time
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import Seconds, Usd, total
from kdn.errors import BadInput

__all__ = ["Hiding", "cheapest_hiding", "hidings"]


@dataclass(frozen=True)
class Hiding:
    """One tier's load beside the recompute of a blend."""

    tier: str
    load: Seconds
    recompute: Seconds
    """Computing the ratio's share of the context, and the prompt."""
    usd: Usd
    """Storage, writing, requests and egress over the period; no GPU time."""
    free_ratio: float
    """Up to this share of the context, at most 1, recomputing costs no time beside the load."""

    @property
    def hides(self) -> bool:
        """Is all loaded by the time that the recompute needs?"""
        return self.load <= self.recompute


def hidings(work: Workload, speed: Speed, sheet: PriceSheet, ratio: float) -> list[Hiding]:
    """Every tier that the context fits into. Raises BadInput for a ratio outside 0 to 1."""
    if not 0 <= ratio <= 1:
        raise BadInput(f"a blend recomputes a share from 0 to 1 of the context, not {ratio:g}")
    found = (_hiding(work, speed, sheet, tier, ratio) for tier in sheet.tiers.values())
    return [one for one in found if one is not None]


def cheapest_hiding(found: Sequence[Hiding]) -> Hiding | None:
    """The cheapest of those that hide; if none does, the fastest. None when there is no tier."""
    hiding = [one for one in found if one.hides]
    if hiding:
        return min(hiding, key=lambda one: one.usd.value)
    return min(found, key=lambda one: one.load.value, default=None)


def _hiding(
    work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice, ratio: float
) -> Hiding | None:
    try:
        stored = bill(work, speed, sheet, tier).stored
    except BadInput:
        return None
    recomputed = round(ratio * work.context_tokens)
    load = load_time(speed, tier, work.context_tokens)
    context = speed.context(work.context_tokens, work.prompt_tokens)
    return Hiding(
        tier.name,
        load,
        speed.prompt(recomputed + work.prompt_tokens, work.context_tokens - recomputed),
        total((stored.storage, stored.write, stored.requests, stored.egress, stored.provisioned)),
        min(1.0, load.over(context)) if context.value else 1.0,
    )
