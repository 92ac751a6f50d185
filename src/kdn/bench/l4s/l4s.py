"""Does choosing a queue per packet pay? Prediction, policies, adopters, and a real router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.bench.common.findings import Findings, Part, go_on
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.l4s.lists import cuts, list_rows, median_cut
from kdn.bench.l4s.prediction import BOUND, EITHER, NEURAL, SENT, captured, knowable, simulated
from kdn.clock import Clock
from kdn.errors import BadInput
from kdn.net.l4s.captures import CAPTURES
from kdn.net.l4s.choosers import packaged_weights
from kdn.net.l4s.evaluate import adopt, judge, policy_world
from kdn.net.l4s.lab import Place, open_place, run_real
from kdn.net.l4s.scenarios import EVALUATION, LISTS
from kdn.net.l4s.stream import PacketStream
from kdn.net.world.records import ECT1, LOG, MS
from kdn.net.world.spec import Scenario
from kdn.plot import Figure

__all__ = ["PARTS", "run"]

PARTS = ("prediction", "policy", "real")
"""What `only` may name; "real" is short and wants a quiet machine."""
_COST_US = 80.0
"""What a decision costs in simulated time, so that results do not depend on the machine's mood."""
_EVERY = ("all-L", "all-C", "random", "by-type", "last-value", "by-forecast", "swift", "oracle")
_MAIN = ("all-L", "all-C", "by-forecast", "swift", "oracle")
_SEEDS, _SECONDS = 3, 8.0
"""Runs of a scenario, each with its own random numbers, and their length: one run's P99 is luck."""


def run(options: BenchOptions) -> Result:
    """Every part of the comparison; `options.data` is a folder with `net/l4s` captures, or None.

    Raises BadInput when `options.only` names no part.
    """
    if options.only is not None and options.only not in PARTS:
        raise BadInput(f"l4s has no part {options.only!r}; there are {', '.join(PARTS)}")
    config = options.describe() | {
        "decision_cost_us": _COST_US,
        "seeds": _SEEDS,
        "seconds": _SECONDS,
    }
    found = Findings.open(options.rows, config, {})
    go_on(found, _parts(options, found), options.rows)
    return Result(
        bench="l4s",
        model="l4s predictor",
        config=config,
        rows=[*list_rows(found.rows), *found.rows],
        summary=_summary(found.rows, time_inference(packaged_weights(), options.clock)),
        notes=(*_NOTES, *found.notes),
        figures=_figures(found.rows),
    )


def _parts(options: BenchOptions, found: Findings) -> list[Part]:
    """What is to be measured, in pieces of a minute or less, so that little is lost with any."""
    weights = packaged_weights()
    parts: list[Part] = []

    def add(name: str, rows: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        def measure() -> None:
            options.say(name)
            found.rows += [_plain(row) for row in rows()]

        parts.append((name, measure))

    if options.only in {None, "prediction"}:
        for name, make in _prediction(weights, options).items():
            add(f"prediction: {name}", make)
    if options.only in {None, "policy"}:
        for listed, share, policies in _plan(options.quick):
            for scenario in LISTS[listed][:: 8 if options.quick else 1]:
                add(
                    f"{listed}, {share}: {scenario.name}",
                    partial(_policy_rows, options, listed, share, scenario, policies),
                )
        add("adopters", partial(_adopters, weights, options.quick))
    if options.only in {None, "real"}:
        add("real router", partial(_real, options.quick, options.say))
    return parts


def _plain(row: Mapping[str, Any]) -> Row:
    """numpy's numbers as Python's own, which can be kept in a file."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in row.items()
    }


_NOTES = (
    (
        "Errors are in ms. An ACK counts only once it has arrived. 'Packets sent' asks about the packets "
        "of a log; 'either queue' asks at each decision what each queue would do, found by copying the "
        "world, which is the question a sender has. 'Whole network known' is the median of nine futures "
        "redrawn from the state of the entire network when the newest ACK's packet left the router: an "
        "estimate of what nobody can do better than, under absolute error."
    ),
    (
        "Delays are one-way, above propagation, deciding included. The frozen list was fixed before "
        "anything was trained. The published list holds what is known of the published set-up; its "
        "low-latency queue carries responsive flows only, so even the oracle finds little and the list "
        "tells nothing about choosing. The transient list is a full grid of bursts that no mark undoes; the "
        "light list is the same grid where hardly anybody is left in the classic queue (no pages, or "
        "0.5 Mbit/s of them). A row of the policy table is the mean of three runs (one with --quick), each "
        "with its own seed."
    ),
    (
        "Others' P99 rises where the judged flow overtakes a burst: its packets are served before the rest"
        " of the burst, which ends later by the flow's share of the link. The rows of the oracle show that it"
        " comes with every good choice: who waits less lets others wait more."
    ),
)


def _prediction(
    weights: NDArray[np.float32], options: BenchOptions
) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    quick = options.quick
    return {
        "simulated flows of held-out seeds": partial(
            simulated, weights, *((2, 3.0) if quick else (16, 6.0))
        ),
        "futures redrawn": partial(knowable, weights, *((2, 2) if quick else (12, 12))),
        "captures": partial(captured, weights, options.data, *((2, 5) if quick else (16, 200))),
    }


def time_inference(weights: NDArray[np.float32], clock: Clock) -> float:
    """Median microseconds for a pair of questions on one thread, the newest ACK included."""
    stream = PacketStream(weights)
    acks = np.zeros(300, LOG)
    acks["t_send"] = np.arange(300) * MS
    acks["t_ack"], acks["sent_ecn"] = acks["t_send"] + 20 * MS, ECT1
    stream.hear(acks[:100])
    stream.ask(0, 0)
    times = []
    for i in range(100, 300):
        start = clock.now()
        stream.hear(acks[i : i + 1])
        stream.ask(int(acks["t_ack"][i]), 15_000)
        times.append(clock.now() - start)
    return float(np.median(times) * 1e6)


def _plan(quick: bool) -> list[tuple[str, str, tuple[str, ...]]]:
    """A list of scenarios, the classic queue's share, and who is to run there."""
    if quick:
        return [(name, "1/16", ("all-L", "swift", "oracle")) for name in LISTS]
    return [
        ("frozen", "1/16", _EVERY),
        ("frozen", "10%", _MAIN),
        ("published", "1/16", _MAIN),
        ("transient", "1/16", (*_MAIN, "swift-online")),
        ("light", "1/16", _MAIN),
    ]


def _policy_rows(
    options: BenchOptions, listed: str, share: str, scenario: Scenario, policies: Sequence[str]
) -> list[dict[str, Any]]:
    seeds = range(options.seed, options.seed + (1 if options.quick else _SEEDS))
    seconds = 3.0 if options.quick else _SECONDS
    rows = []
    for policy in policies:
        outcomes = []
        for seed in seeds:
            world = policy_world(scenario, policy, None, _COST_US, share, seconds, seed)
            world.run()
            outcomes.append(asdict(judge(world, policy, share)))
        rows.append({"part": "policy", "list": listed} | _mean(outcomes))
    return rows


def _mean(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of many: every number's mean."""
    return {
        name: value if isinstance(value, str) else float(np.mean([o[name] for o in outcomes]))
        for name, value in outcomes[0].items()
    }


def _adopters(weights: NDArray[np.float32], quick: bool) -> list[dict[str, Any]]:
    """What if everybody did it: 1 to 8 flows choosing per packet, in two of the scenarios."""
    rows = []
    for index in (1,) if quick else (1, 5):
        for count in (1, 4) if quick else (1, 2, 4, 8):
            for policy in ("all-L", "swift"):
                seconds = 3.0 if quick else 6.0
                found = adopt(EVALUATION[index], count, policy, weights, _COST_US, seconds)
                rows.append({"part": "adopters"} | found)
    return rows


def _real(quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The floor, the router's capacity, then pairs of runs one after the other."""
    pairs, seconds, loads = (1, 2.0, ("load",)) if quick else (5, 5.0, ("load", "overload"))
    rows = []
    with open_place() as place:
        for kind in ("floor", *loads):
            say(f"real router: {kind}")
            rows.append(_real_row(place, "all-L", kind, seconds))
        for i in range(pairs):
            say(f"real router: pair {i + 1} of {pairs}")
            rows.append(_real_row(place, "all-L", "video", seconds))
            rows.append(_real_row(place, "swift", "video", seconds))
        if not quick:
            rows.append(_real_row(place, "swift-online", "video", seconds))
        return rows


_LINK_MBPS = {"load": 100.0, "overload": 55.0}
"""60 Mbit/s are offered to both: one shows what the router can pass, one what DualPI2 drops."""


def _real_row(place: Place, policy: str, kind: str, seconds: float) -> dict[str, Any]:
    found = run_real(place, policy, seconds, kind, _LINK_MBPS.get(kind, 50.0))
    p50, p95, p99 = np.percentile(found.delays_ms, [50, 95, 99])
    forwarded = max(int(found.router["forwarded"]), 1)
    return {
        "part": "real",
        "place": place.name,
        "kind": kind,
        "policy": policy,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "goodput_mbps": found.goodput_mbps,
        "router_us_per_packet": found.router["cpu_s"] / forwarded * 1e6,
        "decision_us": found.sent["decision_us"],
        "tuned": "{} kept, {} undone".format(*found.sent["tuned"]),
        "bleached": found.reflector["bleached"],
    }


def _summary(rows: Sequence[Mapping[str, Any]], inference_us: float) -> dict[str, float | None]:
    p99, oracle = median_cut(rows, "swift", "p99_ms"), median_cut(rows, "oracle", "p99_ms")
    brief = median_cut(rows, "swift", "p99_ms", "transient")
    brief_oracle = median_cut(rows, "oracle", "p99_ms", "transient")
    rises = [-cut for name in LISTS for cut in cuts(rows, "swift", "others_p99_ms", name)]
    real = {row["kind"]: row for row in rows if row["part"] == "real"}
    return {
        "error_cut": _error_cut(rows, EITHER, "transformer"),
        "sharp_error_cut": _error_cut(rows, EITHER, "transformer", "sharp_mae_ms"),
        "sent_error_cut": _error_cut(rows, SENT, "transformer"),
        "lstm_error_cut": _error_cut(rows, EITHER, "lstm"),
        "knowable_error_cut": _error_cut(rows, BOUND, "whole network known"),
        "known_error_cut": _error_cut(rows, BOUND, "transformer"),
        "captured_error_cut": _captured_cut(rows),
        "p99_cut": p99,
        "oracle_p99_cut": oracle,
        "oracle_share": p99 / oracle if p99 is not None and oracle else None,
        "transient_p99_cut": brief,
        "transient_online_p99_cut": median_cut(rows, "swift-online", "p99_ms", "transient"),
        "transient_oracle_p99_cut": brief_oracle,
        "transient_oracle_share": brief / brief_oracle
        if brief is not None and brief_oracle
        else None,
        "light_p99_cut": median_cut(rows, "swift", "p99_ms", "light"),
        "light_oracle_p99_cut": median_cut(rows, "oracle", "p99_ms", "light"),
        "by_forecast_p99_cut": median_cut(rows, "by-forecast", "p99_ms"),
        "worst_p99_cut": min(cuts(rows, "swift", "p99_ms", "frozen"), default=None),
        "published_p99_cut": median_cut(rows, "swift", "p99_ms", "published"),
        "published_oracle_p99_cut": median_cut(rows, "oracle", "p99_ms", "published"),
        "goodput_loss": median_cut(rows, "swift", "goodput_mbps"),
        "others_goodput_loss": median_cut(rows, "swift", "others_mbps"),
        "others_p99_excess": max(rises) if rises else None,
        "inference_us": inference_us,
        "real_p99_cut": _real_cut(rows),
        "real_floor_p99_ms": real["floor"]["p99_ms"] if real else None,
        "router_mbps": real["load"]["goodput_mbps"] if real else None,
    }


def _error_cut(
    rows: Sequence[Mapping[str, Any]], on: str, who: str, field: str = "mae_ms"
) -> float | None:
    """`who` against the best predictor that is neither neural nor a seer."""
    seen = {row["predictor"]: row[field] for row in rows if row.get("on") == on}
    plain = [e for name, e in seen.items() if name not in {*NEURAL, "whole network known"}]
    return 1.0 - seen[who] / min(plain) if who in seen else None


def _real_cut(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over pairs of neighbouring runs."""
    video = [row for row in rows if row["part"] == "real" and row["kind"] == "video"]
    before = [row["p99_ms"] for row in video if row["policy"] == "all-L"]
    after = [row["p99_ms"] for row in video if row["policy"] == "swift"]
    found = [1.0 - b / a for a, b in zip(before, after, strict=True)]
    return float(np.median(found)) if found else None


def _figures(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    """Each scenario's cut under the policy and under the oracle, in order of the oracle's."""
    figures = []
    for name in LISTS:
        both = [cuts(rows, policy, "p99_ms", name) for policy in ("oracle", "swift")]
        if not both[0]:
            continue
        order = np.argsort(both[0])
        lines = {
            policy: [(float(i), max(cut[at], -1.0)) for i, at in enumerate(order)]
            for policy, cut in zip(("oracle", "swift"), both, strict=True)
        }
        title = f"P99 delay taken off all-L, {name} list (cut off at -1)"
        axis = "scenario, ordered by the oracle's gain"
        figures.append(Figure(title, axis, "share of all-L's P99", lines, level=0.0))
    return tuple(figures)


def _captured_cut(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over captures: the tuned Transformer against the best that is not neural."""
    found = []
    for capture in CAPTURES:
        seen = {row["predictor"]: row["mae_ms"] for row in rows if row.get("on") == capture}
        if seen:
            own = seen.pop("transformer, tuned")
            plain = min(error for name, error in seen.items() if name not in NEURAL)
            found.append(1.0 - own / plain)
    return float(np.median(found)) if found else None
