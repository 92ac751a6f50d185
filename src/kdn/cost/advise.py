"""Should this context's KV be stored, where, and for how long? A recommendation per tier, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from kdn.cost.model import Bill, Workload, bill, load_time
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import Seconds, Usd
from kdn.errors import BadInput

__all__ = ["Advice", "advise", "break_even_per_hour", "keep_for", "net_saving"]


@dataclass(frozen=True)
class Advice:
    """The recommendation for one tier."""

    tier: str
    worth_it: bool
    reason: str
    bill: Bill | None = None
    """None where the context does not even fit."""
    break_even_per_hour: float | None = None
    """Uses per hour from which storing pays; None where no rate is enough."""
    keep_for: Seconds | None = None
    """How long to retain KV that is not used; None is for ever, because storage costs nothing."""


def net_saving(work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice) -> float:
    """Dollars that one use saves by loading; negative where loading costs more than computing."""
    context = sheet.gpu.cost(speed.context(work.context_tokens, work.prompt_tokens))
    load = load_time(speed, tier, work.context_tokens) * (1 - work.overlap)
    size = speed.size(work.context_tokens)
    fees = sheet.gpu.cost(load) + tier.get.cost(1) + tier.read.cost(size)
    return context.value - fees.value


def break_even_per_hour(
    work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice
) -> float | None:
    """Hits an hour that pay for an hour's storage and provisioning; None when none do."""
    saving = net_saving(work, speed, sheet, tier)
    return _hourly(work, speed, tier).value / saving if saving > 0 else None


def keep_for(work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice) -> Seconds | None:
    """Until storage since the last use has cost what one more use would save.

    Whatever comes, that costs at most twice what knowing the future would (the ski-rental rule).
    None when storage costs nothing.
    """
    hour = tier.storage.cost(speed.size(work.context_tokens), Seconds(3600.0))
    saving = max(0.0, net_saving(work, speed, sheet, tier))
    return Seconds(3600.0 * saving / hour.value) if hour.value else None


def advise(
    work: Workload, speed: Speed, sheet: PriceSheet, slo: Seconds | None = None
) -> list[Advice]:
    """A recommendation for each tier of the sheet, the cheapest worthwhile one first."""
    found = [_advise(work, speed, sheet, tier, slo) for tier in sheet.tiers.values()]
    return sorted(found, key=_order)


def _order(advice: Advice) -> tuple[bool, float]:
    return not advice.worth_it, -advice.bill.saving if advice.bill is not None else 0.0


def _advise(
    work: Workload, speed: Speed, sheet: PriceSheet, tier: TierPrice, slo: Seconds | None
) -> Advice:
    try:
        found = bill(work, speed, sheet, tier)
    except BadInput as error:
        return Advice(tier.name, worth_it=False, reason=str(error))
    even = break_even_per_hour(work, speed, sheet, tier)
    worth_it, reason = _verdict(work, found, even, slo)
    kept = keep_for(work, speed, sheet, tier)
    return Advice(tier.name, worth_it, reason, found, even, kept)


def _verdict(
    work: Workload, found: Bill, even: float | None, slo: Seconds | None
) -> tuple[bool, str]:
    if work.uses == 1:
        return False, "used once: there is nothing to reuse"
    if slo is not None and found.stored_delay > slo:
        late = f"first token after {found.stored_delay.value:.3g} s, over the {slo.value:.3g} s allowed"
        return False, late
    if even is None:
        return False, "loading costs as much as computing"
    if found.saving <= 0:
        return False, f"needs {even:.3g} reuses an hour to pay for its storage"
    if slo is not None and found.text_delay > slo:
        return True, f"saves {found.saving:.3g} USD, and only so is the first token in time"
    return True, f"saves {found.saving:.3g} USD, {found.ratio:.3g} times cheaper"


def _hourly(work: Workload, speed: Speed, tier: TierPrice) -> Usd:
    hour = Seconds(3600.0)
    storage = tier.storage.cost(speed.size(work.context_tokens), hour)
    return storage + tier.provisioned.cost(hour) * (1 / work.contexts)
