"""Which eviction policy hits how often on a real trace, and what is left to the optimum?

Mooncake's conversation trace (an hour, 12,031 requests, blocks of 512 tokens) through the very code
that the tiers use, at several capacities.  `value` starts each run knowing nothing and learns from
the past of the run alone.  Without that file a trace of chats is made up, and said to be.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdn.bench.common.lines import lines_of, over
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.core import Served
from kdn.errors import BadInput
from kdn.plot import Figure
from kdn.store.policies import POLICIES
from kdn.store.traces.recording import TraceRequest, read_trace
from kdn.store.traces.simulate import OPTIMUM, served_by

__all__ = ["block_trace", "made_up_chats", "run", "trace_notes"]

CAPACITIES = (2000, 8000, 30_000)
_TRACE = Path("mooncake_traces") / "conversation_trace.jsonl.gz"
_BESIDE = Path(__file__).parents[5] / "shared" / "data"


@dataclass(frozen=True)
class _Run:
    policy: str
    capacity: int
    hit_rate: float
    late_hit_rate: float
    """Over the second half of the trace's time."""
    written_share: float
    seconds: float


def run(options: BenchOptions) -> Result:
    """Every policy at every capacity."""
    requests, name = block_trace(options)
    capacities = (200, 800, 3000) if name == "made up" else CAPACITIES
    runs = []
    for capacity in capacities:
        for policy in (*POLICIES, OPTIMUM):
            runs.append(_measure(options, requests, policy, capacity))
            options.say(f"{policy} at {capacity} blocks: {runs[-1].hit_rate:.1%}")
    rates = {(one.policy, one.capacity): one.hit_rate for one in runs}
    return Result(
        bench="policies",
        model="none",
        config=options.describe() | {"trace": name, "requests": len(requests)},
        rows=[_row(one) for one in runs],
        summary=_summary(rates, capacities),
        notes=(_MEANING, _HONESTY, *trace_notes(name)),
        figures=(figure_of([_row(one) for one in runs]),),
    )


def block_trace(options: BenchOptions) -> tuple[list[TraceRequest], str]:
    """The trace that was asked for, or lies beside the checkout, or else is made up; its name.

    Raises BadInput for a trace that names no blocks.
    """
    given = options.data or _BESIDE
    path = given / _TRACE if given.is_dir() else given
    if not path.is_file():
        return made_up_chats(options.seed), "made up"
    requests = read_trace(path)
    if not any(request.hash_ids for request in requests):
        raise BadInput(f"{path}: the trace names no blocks, so no policy can hit; give another")
    return (requests[: -(-len(requests) // 4)] if options.quick else requests), path.name


def made_up_chats(seed: int, chats: int = 600) -> list[TraceRequest]:
    """Chats of a few turns over one system prompt: some people go on, most do not."""
    rng = random.Random(seed)
    requests = []
    for chat in range(chats):
        at_ms, names = rng.uniform(0, 3.6e6), ["system"]
        going_on = rng.choice((0.2, 0.2, 0.8))
        while len(names) < 200:
            names += [f"{chat}.{len(names) + n}" for n in range(rng.randint(1, 12))]
            length = 512 * len(names)
            requests.append(
                TraceRequest(
                    timestamp=at_ms, input_length=length, output_length=200, hash_ids=tuple(names)
                )
            )
            at_ms += rng.lognormvariate(11.8, 0.8)
            if rng.random() > going_on:
                break
    return sorted(requests, key=lambda request: request.timestamp)


def _measure(
    options: BenchOptions, requests: Sequence[TraceRequest], policy: str, capacity: int
) -> _Run:
    started_s = options.clock.now()
    block = requests[0].block_tokens
    served = served_by(policy, requests, token_bytes=1, capacity_bytes=capacity * block)
    seconds = options.clock.now() - started_s
    middle_s = requests[-1].at_s / 2
    late = [one for one in served if one.at_s >= middle_s]
    blocks = sum(one.num_blocks for one in served)
    written = sum(one.written_bytes for one in served) / block
    share = written / max(1, blocks)
    return _Run(policy, capacity, _rate(served), _rate(late), share, seconds)


def _rate(served: Sequence[Served]) -> float:
    asked = sum(one.num_blocks for one in served)
    return sum(one.hit_blocks for one in served) / max(1, asked)


def _row(one: _Run) -> Row:
    return {
        "policy": one.policy,
        "blocks of room": one.capacity,
        "hit rate": one.hit_rate,
        "second half": one.late_hit_rate,
        "written share": one.written_share,
        "s": one.seconds,
    }


def _summary(
    rates: dict[tuple[str, int], float], capacities: Sequence[int]
) -> dict[str, float | None]:
    names = ("2k", "8k", "30k")
    summary: dict[str, float | None] = {}
    for name, capacity in zip(names, capacities, strict=True):
        lru, best = rates["lru", capacity], rates[OPTIMUM, capacity]
        ours = rates["value", capacity]
        summary[f"value_diff_{name}"] = ours - lru
        summary[f"gap_share_{name}"] = (ours - lru) / (best - lru) if best > lru else None
    return summary


_MEANING = (
    "Hits are leading blocks of a prompt that were there, over all blocks asked for. `diff` is"
    " `value` less LRU; `gap_share` is that over what lies between LRU and Belady's optimum."
)
_HONESTY = (
    "`value` starts every run knowing nothing and learns from the run's own past. What it looks at,"
    " and its few constants, were chosen while watching this trace as a whole, so neither half of it"
    " is a held-out test."
)


def trace_notes(name: str) -> tuple[str, ...]:
    """What is to be said of the trace that `block_trace` names."""
    made_up = "The Mooncake trace was not found: chats were made up, so no figure compares."
    return (made_up,) if name == "made up" else ()


def figure_of(rows: Sequence[Row]) -> Figure:
    """Hits of every policy as a share of those of Belady's optimum in the same room."""
    rates = lines_of(rows, "policy", "blocks of room", "hit rate")
    lines = over(rates, rates.pop(OPTIMUM))
    title = "Hits on a conversation trace"
    return Figure(title, "blocks of room", "share of the optimum's", lines, level=1.0)
