"""kdn cost: what storing KV is worth, in money."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.cost_trace import plan, trace
from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption, ModelChoice
from kdn.cli.prices import (
    PlotOption,
    PricesOption,
    SloOption,
    SpeedOption,
    TierOption,
    read_prices,
)
from kdn.cli.show import emit, table, tell, time_text
from kdn.errors import BadInput
from kdn.machine.text import counted

if TYPE_CHECKING:
    from kdn.cost import Advice, Hiding

__all__ = ["cost"]

cost = typer.Typer(help="What storing KV costs and saves, in money.", no_args_is_help=True)
cost.command()(trace)
cost.command()(plan)


@cost.command()
def advise(
    *,
    context: Annotated[int, typer.Option(min=0, help="Tokens of the context.")] = 10_000,
    reuses_per_hour: Annotated[
        float, typer.Option(min=0, max=1e9, help="Uses after the first.")
    ] = 4.0,
    hours: Annotated[float, typer.Option(min=0, max=1e6, help="For how long it is kept.")] = 1.0,
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
    """Should this context's KV be stored, where, and for how long? An answer for each tier.

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
    machine, sheet = load_speed(speed), read_prices(prices)
    advice = ask(work, machine, sheet, None if slo is None else Seconds(slo))
    hiding = [] if blend is None else hidings(work, machine, sheet, blend)
    if as_json:
        emit({"tiers": [_advice_shape(one) | _hiding_shape(one.tier, hiding) for one in advice]})
        return
    tell(
        f"{counted(work.uses, 'use')} of {counted(context, 'token')} in {hours:g} h; USD over that time"
    )
    bill = next((one.bill for one in advice if one.bill is not None), None)
    if bill is not None:
        text_usd, delay_s = bill.text.value, bill.text_delay.value
        tell(f"computed every time: {text_usd:.3g} USD, {delay_s:.3g} s to the first token")
    columns = ("tier", "store", "USD", "saves", "exact", "paper", "delay", "even/h", "keep")
    table("", columns, [_advice_row(one) for one in advice])
    for one in advice:
        tell(f"{one.tier}: {one.reason}")
    if blend is not None:
        _say_hiding(blend, hiding)


def _say_hiding(ratio: float, found: Sequence[Hiding]) -> None:
    """A line per tier, and the choice."""
    from kdn.cost import cheapest_hiding

    for one in found:
        tell(
            f"{one.tier}: loads in {one.load.value:.2g} s, recomputing {ratio:.0%} takes"
            f" {one.recompute.value:.2g} s: {'hidden' if one.hides else 'waited for'};"
            f" up to {one.free_ratio:.0%} is free"
        )
    chosen = cheapest_hiding(found)
    if chosen is not None:
        why = "the cheapest that hides" if chosen.hides else "none hides; the fastest"
        tell(f"for blends at {ratio:.0%}: {chosen.tier} ({why})")


def _hiding_shape(tier: str, found: Sequence[Hiding]) -> dict[str, Any]:
    from kdn.cost import cheapest_hiding

    chosen = cheapest_hiding(found)
    shapes = [
        {
            "load_s": one.load.value,
            "recompute_s": one.recompute.value,
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
    context: Annotated[int | None, typer.Option(min=0, help="10,000 by default.")] = None,
    uses: Annotated[int | None, typer.Option(min=1, help="5 by default.")] = None,
    output: Annotated[int | None, typer.Option(min=0, help="100 by default.")] = None,
    speed: SpeedOption = "llama-8b-h100",
    prices: PricesOption = "aws-h100",
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """How many times cheaper stored KV is, over length, uses, output or prices, for each tier."""
    from kdn.cost import Workload, load_speed
    from kdn.cost.sweep import SWEEPS
    from kdn.cost.sweep import sweep as run

    if over not in SWEEPS:
        raise BadInput(f"--over {over}: expected one of {', '.join(SWEEPS)}")
    given = {"context": context, "uses": uses, "output": output}
    if given.get(over) is not None:
        raise BadInput(f"--over {over} takes its values from --values: leave out --{over}")
    work = Workload(
        context_tokens=10_000 if context is None else context,
        uses=5 if uses is None else uses,
        output_tokens=100 if output is None else output,
    )
    steps = _numbers(values) if values else SWEEPS[over]
    sheet = read_prices(prices)
    names = [tier] if tier else list(sheet.tiers)
    points = run(over, steps, work, load_speed(speed), sheet, names)
    if plot is not None:
        from kdn.plot import Figure, draw

        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            lines.setdefault(point.tier, []).append((point.value, point.ratio))
        title = "Stored KV beside computing"
        draw(Figure(title, over, "times cheaper", lines, level=1.0), plot)
    if as_json:
        emit({"points": points})
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
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--values {text}: write numbers with commas between them") from error
    if not all(map(math.isfinite, found)):
        raise BadInput(f"--values {text}: every number must be finite")
    return found


@cost.command()
@grouped
def fit(
    *,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each point.")] = 3,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Measure how long prompts take on this machine, and keep it for scheduling and estimates."""
    with choice.open() as kdn:
        found = kdn.calibration.fit_jct(repeats=repeats)
        name = kdn.name
    if as_json:
        emit({"model": name, "jct": found})
        return
    points = ((32, 0), (1000, 0), (32, 1000), (4000, 0), (32, 4000))
    rows = [(new, cached, time_text(found.seconds(new, cached))) for new, cached in points]
    table("", ("to compute", "reused", "takes"), rows)
    tell(f"median error over the measured grid: {100 * (found.error or 0):.1f} %")
