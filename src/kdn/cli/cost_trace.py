"""kdn cost trace and plan: a recorded traffic, priced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.options import JsonOption
from kdn.cli.prices import PricesOption, SpeedOption, TierOption, TraceOption, read_prices
from kdn.cli.show import emit, say, size_text, table, time_text
from kdn.errors import BadInput

if TYPE_CHECKING:
    from kdn.core import Served
    from kdn.cost import FleetPlan, PriceSheet, Speed, TierPrice, TraceBill

__all__ = ["plan", "trace"]


def trace(
    *,
    file: TraceOption,
    capacity: Annotated[
        list[str] | None, typer.Option(help="Blocks (8000) or a size (64GB); may be repeated.")
    ] = None,
    tier: TierOption = None,
    policy: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    speed: SpeedOption = "llama-8b-h100",
    prices: PricesOption = "aws-h100",
    as_json: JsonOption = False,
) -> None:
    """Dollars, delay and hit rate of a trace under each eviction policy, in each tier.

    Tiers that do not hold the capacity are left out. The policy none is no store, and nothing is paid
    for one. A trace that does not say which text is the same has no hit rate: only computing is priced.
    """
    from kdn.cost import load_speed
    from kdn.store.traces.simulate import NOTHING, OPTIMUM

    sheet, how_fast = read_prices(prices), load_speed(speed)
    tiers = _tiers(sheet, tier)
    names = policy or [NOTHING, "lru", "value", OPTIMUM]
    rows = []
    for size_bytes, name, served in _replays(file, capacity, names, how_fast.token_bytes):
        places = _places(tiers, size_bytes)
        rows.extend([_priced(name, size_bytes, served, how_fast, sheet, one) for one in places])
        told = "done" if places else "no tier that is asked about holds so much"
        say(f"{name} at {size_text(size_bytes)}: {told}")
    if as_json:
        emit({"prices": sheet.name, "runs": [shape for shape, _ in rows]})
        return
    columns = ("policy", "tier", "capacity", "USD", "prefill", "decode", "load", "storage", "fees")
    table(sheet.name, (*columns, "delay", "hit rate"), [row for _, row in rows])


def _replays(file: Path, capacity: list[str] | None, policies: list[str], token_bytes: int) -> Any:
    """Capacity, policy and what became of each request; once, at a capacity of 0, of no store."""
    from kdn.cli.simulate import capacity_bytes
    from kdn.store.traces.recording import read_trace
    from kdn.store.traces.simulate import NOTHING, served_by

    requests = read_trace(file)
    block_bytes = requests[0].block_tokens * token_bytes
    sizes = [capacity_bytes(text, block_bytes) for text in capacity or ("8000",)]
    if not any(request.hash_ids for request in requests):
        say(f"note: {file} names no blocks, so it does not tell what would have hit")
        sizes, policies = [], [NOTHING]
    if NOTHING in policies:
        yield 0, NOTHING, served_by(NOTHING, requests, token_bytes, 0)
    for size_bytes in sizes:
        for name in policies:
            if name != NOTHING:
                yield size_bytes, name, served_by(name, requests, token_bytes, size_bytes)


def _tiers(sheet: PriceSheet, name: str | None) -> list[TierPrice]:
    """The one that was named, or all."""
    return [sheet.tier(name)] if name else list(sheet.tiers.values())


def _places(tiers: Sequence[TierPrice], size_bytes: int) -> list[TierPrice | None]:
    """Those that hold so much; for nothing None, which is no store.

    A tier with a limit has it per machine; a fleet has at least one.
    """
    if not size_bytes:
        return [None]
    return [t for t in tiers if t.capacity_gb is None or size_bytes <= t.capacity_gb * 1e9]


def _priced(
    name: str,
    size_bytes: int,
    served: list[Served],
    speed: Speed,
    sheet: PriceSheet,
    tier: TierPrice | None,
) -> tuple[dict[str, Any], tuple[object, ...]]:
    from kdn.cost import SizeBytes, price_trace

    bill = price_trace(served, speed, sheet, tier, rented=SizeBytes(float(size_bytes)))
    rate = None if not any(one.num_blocks for one in served) else bill.hit_rate
    place = "none" if tier is None else tier.name
    shape: dict[str, Any] = {"policy": name, "tier": place, "capacity_bytes": size_bytes}
    shape |= _bill_shape(bill) | {"hit_rate": rate}
    money = (bill.usd, bill.prefill, bill.decode, bill.load, bill.storage, bill.fees)
    shown = "-" if rate is None else f"{rate:.1%}"
    row = (
        name,
        place,
        size_text(size_bytes),
        *(f"{usd.value:.2f}" for usd in money),
        time_text(bill.mean_delay.value),
        shown,
    )
    return shape, row


def _bill_shape(bill: TraceBill) -> dict[str, Any]:
    return {
        "usd": bill.usd.value,
        "prefill_usd": bill.prefill.value,
        "decode_usd": bill.decode.value,
        "load_usd": bill.load.value,
        "storage_usd": bill.storage.value,
        "fees_usd": bill.fees.value,
        "mean_delay_s": bill.mean_delay.value,
    }


def plan(
    *,
    file: TraceOption,
    slo: Annotated[
        float, typer.Option(min=0, max=1e9, help="Seconds to the first token, P95.")
    ] = 10.0,
    capacity: Annotated[list[str] | None, typer.Option(help="Sizes to try; repeatable.")] = None,
    traffic: Annotated[
        list[float] | None,
        typer.Option(min=1e-6, max=1e9, help="Times the trace's traffic; may be repeated."),
    ] = None,
    policy: Annotated[str, typer.Option(help="The eviction policy.")] = "value",
    tier: TierOption = None,
    speed: SpeedOption = "llama-8b-h100",
    prices: PricesOption = "aws-h100",
    as_json: JsonOption = False,
) -> None:
    """How many GPUs, and how much of which tier, meet the aim at the least cost.

    The trace's own traffic is simulated request by request; more is worked out on paper, for as
    many copies of the library.
    """
    from kdn.cost import MOST_GPUS, Seconds, SizeBytes, load_speed, plan_fleet

    sheet, how_fast = read_prices(prices), load_speed(speed)
    tiers = _tiers(sheet, tier)
    sizes = capacity or ["2000", "8000", "30000"]
    asked = traffic or [1.0, 10.0, 1000.0]
    found: list[FleetPlan] = []
    for size_bytes, _, served in _replays(file, sizes, [policy], how_fast.token_bytes):
        for times in asked:
            for one in (None, *_places(tiers, size_bytes)):
                held = SizeBytes(float(size_bytes if one is not None else 0))
                option = plan_fleet(served, how_fast, sheet, one, held, Seconds(slo), times)
                if option is not None and option not in found:
                    found.append(option)
        say(f"{size_text(size_bytes)}: done")
    if not found:
        raise BadInput(
            f"no fleet of at most {MOST_GPUS:,} GPUs gives P95 of {slo:g} s: even an idle one takes"
            " longer, or the traffic needs more"
        )
    found.sort(key=lambda one: (one.traffic, one.per_hour.value))
    met = {one.traffic for one in found}
    unmet = [times for times in asked if times not in met]
    for times in unmet:
        say(f"{times:g}x: no fleet of at most {MOST_GPUS:,} GPUs gives P95 of {slo:g} s")
    if as_json:
        emit({"plans": [_plan_shape(one) for one in found], "unmet_traffic": unmet})
        return
    columns = ("traffic", "tier", "stored", "hit rate", "GPUs", "P95", "USD/h", "USD/month")
    table("cheapest first", columns, [_plan_row(one) for one in found])


def _plan_row(one: FleetPlan) -> tuple[object, ...]:
    return (
        f"{one.traffic:g}x",
        one.tier,
        size_text(one.capacity.value),
        f"{one.hit_rate:.1%}",
        one.gpus,
        time_text(one.p95.value),
        f"{one.per_hour.value:,.2f}",
        f"{one.per_hour.value * 730:,.0f}",
    )


def _plan_shape(one: FleetPlan) -> dict[str, Any]:
    return {
        "traffic": one.traffic,
        "tier": one.tier,
        "capacity_bytes": one.capacity.value,
        "hit_rate": one.hit_rate,
        "gpus": one.gpus,
        "p95_s": one.p95.value,
        "usd_per_hour": one.per_hour.value,
    }
