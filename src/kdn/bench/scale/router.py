"""How much sooner do answers begin when each request goes to the server that has its beginning stored?

Mooncake's conversation trace through the router's own rules, with servers on paper: the first quarter
of its hour, as many copies side by side as keep the servers busy, each copy with texts of its own.
Beside the plain trace: a quarter of the servers dead for a third of the time, and one long
document before every fourth prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdn.bench.common.lines import lines_of, over
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.store.policies import block_trace, trace_notes
from kdn.core import PrefillTime
from kdn.cost import Speed, load_speed
from kdn.plot import Figure
from kdn.scale.router import RULES, Fleet, RoutedPrompt
from kdn.scale.router.simulate import (
    Outage,
    RoutedRequest,
    RoutingOutcome,
    simulate_routing,
    with_hot_prefix,
)
from kdn.store.traces.recording import TraceRequest

__all__ = ["run", "side_by_side"]

SERVERS = (1, 4, 16, 64)
SPEED = "llama-8b-h100"
CHUNKS = 3000
"""Of 512 tokens, that a server stores: 201 GB of memory for this model."""
BUSY = 0.9
"""The share of the servers' time that computing every prompt whole would take."""
HOT_CHUNKS = 32
KV_AWARE = "kv-aware"
PLAIN, DEAD, HOT = "plain", "dead servers", "hot document"
_AT = 16
"""Servers of the scenarios beside the plain one."""


@dataclass(frozen=True)
class _Routed:
    scenario: str
    servers: int
    rule: str
    requests: int
    outcome: RoutingOutcome


def run(options: BenchOptions) -> Result:
    """Every rule with every number of servers, and in both scenarios."""
    trace, name = block_trace(replace(options, quick=False))
    trace = trace[: len(trace) // (32 if options.quick else 4)]
    counts, at = ((1, 4), 4) if options.quick else (SERVERS, _AT)
    speed = load_speed(SPEED)
    found = []
    for scenario, servers in [(PLAIN, count) for count in counts] + [(DEAD, at), (HOT, at)]:
        requests = side_by_side(trace, servers, speed)
        if scenario == HOT:
            requests = list(with_hot_prefix(requests, _hot(), every=4))
        outages = _outages(servers, requests) if scenario == DEAD else ()
        for rule in RULES:
            found.append(_route(scenario, servers, rule, requests, outages, speed.prefill))
            outcome = found[-1].outcome
            options.say(
                f"{scenario}, {servers} servers, {rule}: {outcome.hit_rate:.1%} hits,"
                f" {outcome.mean_s:.2f} s to the first token"
            )
    return Result(
        bench="router",
        model="none",
        config=options.describe() | {"trace": name, "speed": SPEED, "busy": BUSY, "chunks": CHUNKS},
        rows=[_row(one) for one in found],
        summary=_summary(found, at),
        notes=(_MEANING, _HONESTY, *trace_notes(name)),
        figures=figures_of([_row(one) for one in found]),
    )


def side_by_side(
    trace: Sequence[TraceRequest], servers: int, speed: Speed, busy: float = BUSY
) -> list[RoutedRequest]:
    """Copies of a trace, and its time stretched, so that computing all keeps the servers so busy.

    Texts of different copies have nothing in common; copies begin apart by equal parts of a minute.
    """
    work_s = sum(speed.prefill.seconds(one.input_length, 0) for one in trace)
    span_s = trace[-1].at_s - trace[0].at_s
    copies = max(1, round(busy * servers * span_s / work_s))
    stretch = copies * work_s / (busy * servers * span_s)
    return sorted(
        (
            RoutedRequest(
                at_s=(one.at_s - trace[0].at_s) * stretch + 60 * copy / copies,
                prompt=RoutedPrompt(
                    tuple((copy, name) for name in one.hash_ids), one.input_length, one.block_tokens
                ),
                answer_s=one.output_length * speed.decode_token_s,
            )
            for copy in range(copies)
            for one in trace
        ),
        key=lambda request: request.at_s,
    )


def _hot() -> RoutedPrompt:
    chunks = tuple(("hot", number) for number in range(HOT_CHUNKS))
    return RoutedPrompt(chunks, 512 * HOT_CHUNKS, 512)


def _outages(servers: int, requests: Sequence[RoutedRequest]) -> list[Outage]:
    """Every fourth server is gone in the middle third."""
    end_s = requests[-1].at_s
    return [Outage(str(name), end_s / 3, 2 * end_s / 3) for name in range(0, servers, 4)]


def _route(
    scenario: str,
    servers: int,
    rule: str,
    requests: Sequence[RoutedRequest],
    outages: Sequence[Outage],
    prefill: PrefillTime,
) -> _Routed:
    fleet = Fleet([str(number) for number in range(servers)], prefill, CHUNKS)
    outcome = simulate_routing(requests, fleet, RULES[rule](), prefill, CHUNKS, outages)
    return _Routed(scenario, servers, rule, len(requests), outcome)


def _row(one: _Routed) -> Row:
    return {
        "scenario": one.scenario,
        "servers": one.servers,
        "rule": one.rule,
        "requests": one.requests,
        "hit rate": one.outcome.hit_rate,
        "mean s": one.outcome.mean_s,
        "P99 s": one.outcome.quantile_s(0.99),
        "sent again": one.outcome.num_retried,
        "cut": one.outcome.num_cut,
        "lost": one.requests - len(one.outcome.first_token_s),
    }


def _summary(found: Sequence[_Routed], at: int) -> dict[str, float | None]:
    """Ours against the best of the others, each measure by itself."""
    summary: dict[str, float | None] = {}
    for scenario, word in ((PLAIN, "plain"), (DEAD, "dead"), (HOT, "hot")):
        of = {
            one.rule: one.outcome for one in found if (one.scenario, one.servers) == (scenario, at)
        }
        ours = of.pop(KV_AWARE)
        summary[f"hit_diff_{word}"] = ours.hit_rate - max(one.hit_rate for one in of.values())
        summary[f"mean_ratio_{word}"] = min(one.mean_s for one in of.values()) / ours.mean_s
        best_s = min(one.quantile_s(0.99) for one in of.values())
        summary[f"p99_ratio_{word}"] = best_s / ours.quantile_s(0.99)
    return summary


_MEANING = (
    "`hit_diff` is kv-aware less the best other rule; `mean_ratio` and `p99_ratio` are the best other"
    " rule's time over kv-aware's, so above 1 kv-aware is sooner. Each measure has its own best rule."
    " With 16 servers (`--quick`: 4)."
)
_HONESTY = (
    "Servers are simulated: one prefill at a time, answers slow nothing down, and loading stored KV"
    " takes no time. The speed is worked out from sheets, not measured."
)


def figures_of(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Hits of every rule, and what it makes callers wait beside the rule that knows what is stored."""
    plain = [row for row in rows if row["scenario"] == PLAIN]
    hits = lines_of(plain, "rule", "servers", "hit rate")
    figures = [Figure("Hit rate", "servers", "share of prompt tokens", hits)]
    for told, key in (("Mean", "mean s"), ("P99", "P99 s")):
        waits = lines_of(plain, "rule", "servers", key)
        ours = waits.pop(KV_AWARE)
        title = f"{told} time to first token"
        figures.append(
            Figure(title, "servers", f"times {KV_AWARE}'s", over(waits, ours), level=1.0)
        )
    return tuple(figures)
