"""The simulated grid of one-token jobs: workloads, arrivals, caches, loads and policies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdn.bench.common.lines import lines_of, over
from kdn.bench.common.result import BenchOptions, Row
from kdn.bench.jobs.jobs import ARRIVALS, Posts, credit_jobs, post_jobs, with_arrivals
from kdn.core import JctModel, quantile
from kdn.plot import Figure
from kdn.schedule import Ended, PrefixCache, PrefixJob, RequestQueue, make_policy, simulate

__all__ = [
    "FCFS",
    "LIVE_CACHE",
    "LOADS",
    "OURS",
    "PACK_TOKENS",
    "PAPER",
    "RIVAL",
    "Cell",
    "Gains",
    "cell_of",
    "mean_latency_figure",
    "shown",
    "simulate_grid",
    "simulated",
    "throughput",
]

FCFS, RIVAL, PAPER, OURS = "fcfs", "shortest-miss", "calibrated", "families"
PREFLOW = "preflow"
PACK_TOKENS = 256
LIVE_CACHE = 5
LOADS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
_FINE = tuple(0.25 * 2 ** (k / 3) for k in range(19))
"""Loads at which our policy is tried for equal latency: up to 16 times the throughput of FCFS."""
_CACHES = (2, 5, 10)
_EQUAL = 1.02
"""Latencies this close count as equal."""


@dataclass(frozen=True)
class Cell:
    """What a policy made of one arrival of jobs."""

    mean_s: float
    p50_s: float
    p99_s: float
    per_s: float
    hit_tokens: int
    longest_wait_s: float


def throughput(
    jobs: Sequence[PrefixJob], pattern: str, model: JctModel, cache_tokens: int, seed: int
) -> float:
    """Jobs a second of first come, first served when all are there from the start."""
    at_once = with_arrivals(jobs, pattern, 1e9, seed)
    return simulated(at_once, FCFS, model, cache_tokens).per_s


def simulated(jobs: Sequence[PrefixJob], policy: str, model: JctModel, cache_tokens: int) -> Cell:
    room = RequestQueue(make_policy(policy, model))
    return cell_of(simulate(jobs, room, model, PrefixCache(cache_tokens), PACK_TOKENS))


def cell_of(ended: Sequence[Ended]) -> Cell:
    latencies = [one.latency_ns / 1e9 for one in ended]
    first = min(one.arrival_ns for one in ended)
    span_s = (max(one.end_ns for one in ended) - first) / 1e9
    return Cell(
        mean_s=statistics.fmean(latencies),
        p50_s=quantile(latencies, 0.5),
        p99_s=quantile(latencies, 0.99),
        per_s=len(ended) / span_s,
        hit_tokens=sum(one.num_cached for one in ended),
        longest_wait_s=max(one.wait_ns for one in ended) / 1e9,
    )


@dataclass(frozen=True)
class Gains:
    """How many times better our policy is in one cell of the grid, load by load and seed by seed."""

    workload: str
    arrivals: str
    cache_users: int
    qps: tuple[float, ...]
    paper: tuple[float, ...]
    """The same of PrefillOnly's own order."""
    mean_rival: tuple[float, ...]
    p99: tuple[float, ...]

    def row(self) -> Row:
        return {
            "what": "grid",
            "workload": self.workload,
            "arrivals": self.arrivals,
            "cache, users": self.cache_users,
            "qps gain": statistics.geometric_mean(self.qps),
            "qps gain, best": max(self.qps),
            "qps gain, worst": min(self.qps),
            "qps gain, paper's order": statistics.geometric_mean(self.paper),
            "mean gain, spf": statistics.geometric_mean(self.mean_rival),
            "p99 gain": statistics.geometric_mean(self.p99),
        }


def simulate_grid(
    options: BenchOptions, model: JctModel, lengths: Sequence[int]
) -> tuple[list[Gains], list[Row]]:
    """Every cell, and the latencies of those with a cache for five users."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    posts = Posts(posts=6) if options.quick else Posts()
    cells, details = [], list[Row]()
    caches = (LIVE_CACHE,) if options.quick else _CACHES
    places = [("posts", pattern, users) for pattern in ARRIVALS for users in caches]
    for workload, pattern, users in [*places, ("credit", "spread", LIVE_CACHE)]:
        runs = []
        for seed in seeds:
            jobs = post_jobs(posts, seed) if workload == "posts" else credit_jobs(lengths, 60)
            cache_tokens = round(users * posts.profile_mean)
            runs.append(_curves(jobs, pattern, model, cache_tokens, seed))
        cells.append(_gains(workload, pattern, users, runs))
        options.say(f"simulated: {workload}, {pattern}, cache for {users} users")
        if users == LIVE_CACHE:
            details += _details(workload, pattern, users, runs[0])
    return cells, details


Curves = dict[str, dict[float, Cell]]


def _curves(
    jobs: Sequence[PrefixJob], pattern: str, model: JctModel, cache_tokens: int, seed: int
) -> Curves:
    """What each policy makes of each load."""
    base = throughput(jobs, pattern, model, cache_tokens, seed)

    def at(policy: str, loads: Sequence[float]) -> dict[float, Cell]:
        return {
            load: simulated(
                with_arrivals(jobs, pattern, load * base, seed), policy, model, cache_tokens
            )
            for load in loads
        }

    fine = sorted({*LOADS, *_FINE})
    found = {name: at(name, LOADS) for name in (FCFS, RIVAL, PREFLOW)}
    return found | {PAPER: at(PAPER, fine), OURS: at(OURS, fine)}


def _gains(workload: str, pattern: str, users: int, runs: Sequence[Curves]) -> Gains:
    def ratios(other: str, value: Callable[[Cell], float]) -> tuple[float, ...]:
        return tuple(value(run[other][q]) / value(run[OURS][q]) for run in runs for q in LOADS)

    return Gains(
        workload,
        pattern,
        users,
        qps=tuple(_qps_gain(run[FCFS][q], q, run[OURS]) for run in runs for q in LOADS if q <= 2),
        paper=tuple(
            _qps_gain(run[FCFS][q], q, run[PAPER]) for run in runs for q in LOADS if q <= 2
        ),
        mean_rival=ratios(RIVAL, lambda cell: cell.mean_s),
        p99=ratios(FCFS, lambda cell: cell.p99_s),
    )


def _qps_gain(theirs: Cell, load: float, ours: dict[float, Cell]) -> float:
    """The highest load up to which ours keeps both their mean and their P99, over their load."""
    kept = 0.0
    for other in sorted(ours):
        mean_s, p99_s = ours[other].mean_s, ours[other].p99_s
        if mean_s > _EQUAL * theirs.mean_s or p99_s > _EQUAL * theirs.p99_s:
            break
        kept = other
    return (kept or min(ours)) / load


def _details(workload: str, pattern: str, users: int, curves: Curves) -> list[Row]:
    where: Row = {"what": "simulated", "workload": workload, "arrivals": pattern}
    return [
        where
        | {"cache, users": users, "load": load, "policy": policy}
        | shown(curves[policy][load])
        for load in LOADS
        for policy in (FCFS, RIVAL, PREFLOW, PAPER, OURS)
    ]


def shown(cell: Cell) -> Row:
    return {
        "mean, s": cell.mean_s,
        "p50, s": cell.p50_s,
        "p99, s": cell.p99_s,
        "jobs/s": cell.per_s,
        "hit tokens": cell.hit_tokens,
        "longest wait, s": cell.longest_wait_s,
    }


def mean_latency_figure(details: Sequence[Row]) -> Figure:
    """How long each order lets posts wait, beside first come, first served at the same load."""
    shown = [row for row in details if row.get("load") and row.get("workload") == "posts"]
    shown = [row for row in shown if row["arrivals"] == "spread"]
    means = lines_of(shown, "policy", "load", "mean, s")
    others = {name: points for name, points in means.items() if name != FCFS}
    return Figure(
        "Post recommendation, spread arrivals",
        "load (1: what first come, first served gets through)",
        "mean latency over that of first come, first served",
        over(others, means[FCFS]),
        level=1.0,
    )
