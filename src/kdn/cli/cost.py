"""kdn cost: what storing KV is worth, in money."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.options import (
    DeviceOption,
    DtypeOption,
    HomeOption,
    Int8Option,
    JsonOption,
    ModelChoice,
    ModelOption,
)
from kdn.cli.show import emit, say, size_text, table, time_text
from kdn.errors import BadInput

if TYPE_CHECKING:
    from kdn.core import Served
    from kdn.cost import Advice, FleetPlan, Hiding, PriceSheet, Speed, TierPrice, TraceBill

__all__ = ["cost"]

cost = typer.Typer(help="What storing KV costs and saves, in money.", no_args_is_help=True)

PricesOption = Annotated[
    str, typer.Option(help="A price sheet: aws-h100, gcp-h100, own-h100, ... or a .toml file.")
]
SpeedOption = Annotated[
    str, typer.Option(help="A model on a machine: llama-8b-h100, ... or a .toml file.")
]
TraceOption = Annotated[
    Path,
    typer.Option(
        "--trace", exists=True, dir_okay=False, help="Requests, .jsonl or .csv, or .gz of one."
    ),
]
TierOption = Annotated[str | None, typer.Option(help="A tier of the sheet; all by default.")]
PlotOption = Annotated[Path | None, typer.Option(help="Draw it into this file.")]
SloOption = Annotated[float | None, typer.Option(min=0, help="Seconds to the first token.")]


def _prices(name: str) -> PriceSheet:
    """The sheet; what is wrong with its age or basis is said on stderr."""
    from kdn.cost import load_sheet

    sheet = load_sheet(name)
    warning = sheet.warning(dt.datetime.now(tz=dt.UTC).date())
    for line in (warning, sheet.note):
        if line:
            say(f"note: {line}")
    return sheet


@cost.command()
def advise(
    *,
    context: Annotated[int, typer.Option(min=0, help="Tokens of the context.")] = 10_000,
    reuses_per_hour: Annotated[float, typer.Option(min=0, help="Uses after the first.")] = 4.0,
    hours: Annotated[float, typer.Option(min=0, help="For how long it is kept.")] = 1.0,
    prompt: Annotated[int, typer.Option(min=0, help="Tokens of each question.")] = 100,
    output: Annotated[int, typer.Option(min=0, help="Tokens of each answer.")] = 100,
    contexts: Annotated[int, typer.Option(min=1, help="How many such share a tier.")] = 1,
    found: Annotated[float, typer.Option(min=0, max=1, help="Share of uses that hit.")] = 1.0,
    overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of loads hidden.")] = 0.0,
    slo: SloOption = None,
    blend: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the context that a blend recomputes."),
    ] = None,
    speed: SpeedOption = "llama-8b-h100",
    prices: PricesOption = "aws-h100",
    as_json: JsonOption = False,
) -> None:
    """Should this context's KV be stored, where, and for how long? A verdict for each tier.

    With --blend also: the cheapest tier whose load hides behind the recompute of the blend.
    """
    from kdn.cost import Seconds, Workload, hidings, load_speed
    from kdn.cost import advise as ask

    work = Workload(
        context_tokens=context,
        uses=1 + round(reuses_per_hour * hours),
        prompt_tokens=prompt,
        output_tokens=output,
        period=Seconds(hours * 3600),
        found_share=found,
        overlap=overlap,
        contexts=contexts,
    )
    machine, sheet = load_speed(speed), _prices(prices)
    advice = ask(work, machine, sheet, None if slo is None else Seconds(slo))
    hiding = [] if blend is None else hidings(work, machine, sheet, blend)
    if as_json:
        emit([_advice_shape(one) | _hiding_shape(one.tier, hiding) for one in advice])
        return
    print(f"{work.uses} uses of {context:,} tokens in {hours:g} h; USD over that time")
    bill = next((one.bill for one in advice if one.bill is not None), None)
    if bill is not None:
        text_usd, delay_s = bill.text.value, bill.text_delay.value
        print(f"computed every time: {text_usd:.3g} USD, {delay_s:.3g} s to the first token")
    columns = ("tier", "store", "USD", "saves", "exact", "paper", "delay", "even/h", "keep")
    table("", columns, [_advice_row(one) for one in advice])
    for one in advice:
        print(f"{one.tier}: {one.reason}")
    if blend is not None:
        _say_hiding(blend, hiding)


def _say_hiding(ratio: float, found: Sequence[Hiding]) -> None:
    """A line per tier, and the choice."""
    from kdn.cost import cheapest_hiding

    for one in found:
        print(
            f"{one.tier}: loads in {one.load.value:.2g} s, mending {ratio:.0%} takes"
            f" {one.mending.value:.2g} s: {'hidden' if one.hides else 'waited for'};"
            f" up to {one.free_ratio:.0%} is free"
        )
    chosen = cheapest_hiding(found)
    if chosen is not None:
        why = "the cheapest that hides" if chosen.hides else "none hides; the fastest"
        print(f"for blends at {ratio:.0%}: {chosen.tier} ({why})")


def _hiding_shape(tier: str, found: Sequence[Hiding]) -> dict[str, Any]:
    from kdn.cost import cheapest_hiding

    chosen = cheapest_hiding(found)
    shapes = [
        {
            "load_s": one.load.value,
            "mending_s": one.mending.value,
            "hides": one.hides,
            "free_ratio": one.free_ratio,
            "chosen": one is chosen,
        }
        for one in found
        if one.tier == tier
    ]
    return {"blend": shapes[0]} if shapes else {}


def _advice_row(one: Advice) -> tuple[object, ...]:
    bill = one.bill
    if bill is None:
        return (one.tier, "no", *["-"] * 7)
    even = "never" if one.break_even_per_hour is None else f"{one.break_even_per_hour:.3g}"
    return (
        one.tier,
        "yes" if one.worth_it else "no",
        f"{bill.stored.usd.value:.2g}",
        f"{bill.ratio:.2f}x",
        f"{bill.exact_ratio:.2f}x",
        f"{bill.published_ratio:.2f}x",
        f"{bill.stored_delay.value:.2g} s",
        even,
        "ever" if one.keep_for is None else time_text(one.keep_for.value),
    )


def _advice_shape(one: Advice) -> dict[str, Any]:
    shape: dict[str, Any] = {"tier": one.tier, "store": one.worth_it, "reason": one.reason}
    if one.bill is not None:
        terms = {name: value.value for name, value in _terms(one.bill.stored).items()}
        shape |= {
            "text_usd": one.bill.text.value,
            "stored_usd": one.bill.stored.usd.value,
            "stored_terms_usd": terms,
            "ratio": one.bill.ratio,
            "exact_ratio": one.bill.exact_ratio,
            "published_ratio": one.bill.published_ratio,
            "text_delay_s": one.bill.text_delay.value,
            "stored_delay_s": one.bill.stored_delay.value,
            "break_even_per_hour": one.break_even_per_hour,
            "keep_for_s": None if one.keep_for is None else one.keep_for.value,
        }
    return shape


def _terms(stored: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {term.name: getattr(stored, term.name) for term in fields(stored)}


@cost.command()
def sweep(
    *,
    over: Annotated[
        str, typer.Option(help="context, uses, output, gpu (USD/h) or storage (USD/GB/month).")
    ] = "context",
    values: Annotated[str, typer.Option(help="Comma-separated; sensible ones by default.")] = "",
    tier: TierOption = None,
    context: Annotated[int, typer.Option(min=0)] = 10_000,
    uses: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[int, typer.Option(min=0)] = 100,
    speed: SpeedOption = "llama-8b-h100",
    prices: PricesOption = "aws-h100",
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """How many times cheaper stored KV is, over length, uses, output or prices, for each tier."""
    from kdn.cost import Workload, load_speed
    from kdn.cost.sweep import SWEEPS
    from kdn.cost.sweep import sweep as run

    work = Workload(context_tokens=context, uses=uses, output_tokens=output)
    if over not in SWEEPS:
        raise BadInput(f"--over {over}: expected one of {', '.join(SWEEPS)}")
    steps = _numbers(values) if values else SWEEPS[over]
    sheet = _prices(prices)
    names = [tier] if tier else list(sheet.tiers)
    points = run(over, steps, work, load_speed(speed), sheet, names)
    if plot is not None:
        from kdn.cli.plot import draw_lines

        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            lines.setdefault(point.tier, []).append((point.value, point.ratio))
        draw_lines(plot, "Stored KV against computing", (over, "times cheaper"), lines)
    if as_json:
        emit(points)
        return
    columns = (over, "tier", "text USD", "stored USD", "cheaper", "exact", "published", "faster")
    rows = [
        (
            f"{p.value:g}", p.tier, f"{p.text_usd:.3g}", f"{p.stored_usd:.3g}", f"{p.ratio:.2f}x",
            f"{p.exact_ratio:.2f}x", f"{p.published_ratio:.2f}x", f"{p.delay_ratio:.2f}x",
        )
        for p in points
    ]  # fmt: skip
    table("", columns, rows)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--values {text}: write numbers with commas between them") from error


@cost.command()
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
    """Dollars, delay and hit rate of a trace under each eviction policy.

    A trace that does not say which text is the same has no hit rate: only computing is priced.
    """
    from kdn.cost import load_speed
    from kdn.store.traces.simulate import OPTIMUM

    sheet, how_fast = _prices(prices), load_speed(speed)
    chosen = sheet.tier(tier) if tier else next(iter(sheet.tiers.values()))
    names = policy or ["none", "lru", "value", OPTIMUM]
    rows = []
    for size_bytes, name, served in _replays(file, capacity, names, how_fast.token_bytes):
        rows.append(_priced(name, size_bytes, served, how_fast, sheet, chosen))
        say(f"{name} at {size_text(size_bytes)}: done")
    if as_json:
        emit({"tier": chosen.name, "prices": sheet.name, "runs": [shape for shape, _ in rows]})
        return
    columns = ("policy", "capacity", "USD", "prefill", "decode", "load", "storage", "fees")
    table(
        f"tier {chosen.name}, {sheet.name}", (*columns, "delay", "hit rate"), [r for _, r in rows]
    )


def _replays(file: Path, capacity: list[str] | None, policies: list[str], token_bytes: int) -> Any:
    """Capacity, policy and what became of each request."""
    from kdn.cli.simulate import capacity_bytes
    from kdn.store.traces.recording import read_trace
    from kdn.store.traces.simulate import served_by

    requests = read_trace(file)
    block_bytes = requests[0].block_tokens * token_bytes
    if not any(request.hash_ids for request in requests):
        say(f"note: {file} names no blocks: nobody can say what would have hit")
        yield 0, "none", served_by("none", requests, token_bytes, 0)
        return
    for text in capacity or ("8000",):
        size_bytes = capacity_bytes(text, block_bytes)
        for name in policies:
            yield size_bytes, name, served_by(name, requests, token_bytes, size_bytes)


def _priced(
    name: str,
    size_bytes: int,
    served: list[Served],
    speed: Speed,
    sheet: PriceSheet,
    tier: TierPrice,
) -> tuple[dict[str, Any], tuple[object, ...]]:
    from kdn.cost import SizeBytes, price_trace

    bill = price_trace(served, speed, sheet, tier, rented=SizeBytes(float(size_bytes)))
    rate = None if not any(one.num_blocks for one in served) else bill.hit_rate
    shape = _bill_shape(bill) | {"policy": name, "capacity_bytes": size_bytes, "hit_rate": rate}
    money = (bill.usd, bill.prefill, bill.decode, bill.load, bill.storage, bill.fees)
    shown = "-" if rate is None else f"{rate:.1%}"
    row = (
        name,
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


@cost.command()
def plan(
    *,
    file: TraceOption,
    slo: Annotated[float, typer.Option(min=0, help="Seconds to the first token, P95.")] = 10.0,
    capacity: Annotated[list[str] | None, typer.Option(help="Sizes to try; repeatable.")] = None,
    traffic: Annotated[
        list[float] | None, typer.Option(help="Times the trace's traffic; may be repeated.")
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
    from kdn.cost import Seconds, SizeBytes, load_speed, plan_fleet

    sheet, how_fast = _prices(prices), load_speed(speed)
    tiers = [sheet.tier(tier)] if tier else list(sheet.tiers.values())
    sizes = capacity or ["2000", "8000", "30000"]
    found: list[FleetPlan] = []
    for size_bytes, _, served in _replays(file, sizes, [policy], how_fast.token_bytes):
        for times in traffic or (1.0, 10.0, 1000.0):
            for one in (None, *(t for t in tiers if _fits(t, size_bytes))):
                held = SizeBytes(float(size_bytes if one is not None else 0))
                option = plan_fleet(served, how_fast, sheet, one, held, Seconds(slo), times)
                if option is not None and option not in found:
                    found.append(option)
        say(f"{size_text(size_bytes)}: done")
    if not found:
        raise BadInput(f"no fleet gives P95 of {slo:g} s: even an idle one takes longer")
    found.sort(key=lambda one: (one.traffic, one.per_hour.value))
    if as_json:
        emit([_plan_shape(one) for one in found])
        return
    columns = ("traffic", "tier", "stored", "hit rate", "GPUs", "P95", "USD/h", "USD/month")
    table("cheapest first", columns, [_plan_row(one) for one in found])


def _fits(tier: TierPrice, size_bytes: int) -> bool:
    """A tier with a limit has it per machine; a fleet has at least one."""
    return tier.capacity_gb is None or size_bytes <= tier.capacity_gb * 1e9


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


@cost.command()
def fit(
    *,
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each point.")] = 3,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how long prompts take on this machine, and keep it for scheduling and estimates."""
    with ModelChoice(model, home, device, dtype, int8).open() as kdn:
        found = kdn.calibration.fit_jct(repeats=repeats)
        name = kdn.name
    if as_json:
        emit({"model": name, "jct": found})
        return
    points = ((32, 0), (1000, 0), (32, 1000), (4000, 0), (32, 4000))
    rows = [(new, cached, time_text(found.seconds(new, cached))) for new, cached in points]
    table("", ("to compute", "reused", "takes"), rows)
    print(f"median error over the measured grid: {100 * (found.error or 0):.1f} %")
