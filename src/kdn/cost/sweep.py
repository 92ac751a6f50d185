"""The model over a range of one quantity, the others held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdn.cost.model import Workload, bill
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import PerByteHour, PerHour
from kdn.errors import BadInput

__all__ = ["SWEEPS", "SweepPoint", "sweep"]

SWEEPS: dict[str, list[float]] = {
    "context": [1000, 2000, 4000, 8000, 16_000, 32_000],
    "uses": [1, 2, 5, 10, 50],
    "output": [1, 10, 30, 100, 300],
    "gpu": [1, 2, 4, 8],
    "storage": [0.023, 0.08, 0.125],
}
"""What can be swept, and over which values when none are given."""
_COUNTS = ("context", "uses", "output")


@dataclass(frozen=True)
class SweepPoint:
    """One tier at one value of what is swept."""

    value: float
    tier: str
    text_usd: float
    stored_usd: float
    ratio: float
    exact_ratio: float
    published_ratio: float
    delay_ratio: float
    """Times sooner that the first token comes."""


def sweep(
    over: str,
    values: Sequence[float],
    work: Workload,
    speed: Speed,
    sheet: PriceSheet,
    tiers: Sequence[str],
) -> list[SweepPoint]:
    """Every value with every tier. Raises BadInput for an unknown quantity or an absurd value."""
    found = []
    for value in values:
        for name in tiers:
            at = _at(over, value, work, sheet, sheet.tier(name))
            one = bill(at[0], speed, at[1], at[2])
            found.append(
                SweepPoint(
                    value=value,
                    tier=name,
                    text_usd=one.text.value,
                    stored_usd=one.stored.usd.value,
                    ratio=one.ratio,
                    exact_ratio=one.exact_ratio,
                    published_ratio=one.published_ratio,
                    delay_ratio=one.text_delay.over(one.stored_delay),
                )
            )
    return found


def _at(
    over: str, value: float, work: Workload, sheet: PriceSheet, tier: TierPrice
) -> tuple[Workload, PriceSheet, TierPrice]:
    if over == "gpu":
        return work, replace(sheet, gpu=PerHour(value)), tier
    if over == "storage":
        return work, sheet, replace(tier, storage=PerByteHour.gb_month(value))
    if over not in _COUNTS:
        raise BadInput(f"cannot sweep over {over!r}; there are {', '.join(SWEEPS)}")
    if value != int(value):
        raise BadInput(f"{over} of {value}: expected a whole number")
    return _counted(over, int(value), work), sheet, tier


def _counted(over: str, value: int, work: Workload) -> Workload:
    if over == "context":
        return replace(work, context_tokens=value)
    return replace(work, uses=value) if over == "uses" else replace(work, output_tokens=value)
