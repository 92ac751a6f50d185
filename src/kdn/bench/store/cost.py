"""Does the cost model know what a workload will take on this machine, and which policy is cheaper?

A few requests are timed, before and after all else, and the model's speeds fitted to them.  Workloads
that are not among them are predicted so and run: contexts of 500 to 7,500 tokens, 1 to 50 uses, 1 to
100 tokens out, computed each time and stored.  A workload's measured time is the median of three
repeats, nine of a short one, over contexts of its own each time.  Then a conversation trace is priced
under LRU, `value` and the clairvoyant policy.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count

import torch

from kdn import api
from kdn.bench.common.lines import Lines, lines_of
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.contestants import Listener
from kdn.bench.engine.lineup import opened
from kdn.bench.store.policies import CAPACITIES, block_trace
from kdn.core import Prompt, Request, Retention, Role, Sampling, Segment, quantile
from kdn.cost import (
    PerByteHour,
    PerHour,
    PriceSheet,
    Seconds,
    SizeBytes,
    TierPrice,
    Workload,
    bill,
    load_sheet,
    load_speed,
    price_trace,
)
from kdn.cost.fitted import FittedSpeed, TimedRun, fit_speed
from kdn.errors import EngineFailed
from kdn.plot import Figure
from kdn.store.traces.simulate import NOTHING, OPTIMUM, served_by

__all__ = ["run"]

_QUESTION_TOKENS = 48
_REPEATS = 3
_SHORT_REPEATS = 9
_SHORT_TOKENS = 6_000
_STEP_TOKENS = 30
"""About as many tokens of prefill as a decoding step takes."""
_FIT_COLD = ((150, 1), (400, 1), (650, 10), (1200, 40), (2600, 1), (4200, 40), (6400, 1))
"""(context, output) of requests that find nothing; the longer contexts are then used again."""
_FIT_HITS = 3
_HELD_OUT = (
    (500, 1, 1), (500, 5, 10), (750, 20, 30), (1000, 2, 100), (1500, 50, 1), (2000, 5, 10),
    (3500, 10, 1), (5000, 2, 30), (7500, 2, 10),
)  # fmt: skip
"""(context, uses, output)."""
_TEXT_TOKENS = 12_000
"""Workloads of more context tokens in all are only run with stored KV: they take too long otherwise."""
_QUICK_FIT = ((300, 1), (700, 12), (1100, 12))
_QUICK_HELD_OUT = ((500, 2, 4), (900, 3, 8))
_SECOND = PriceSheet(
    name="seconds",
    date=load_sheet("laptop").date,
    gpu=PerHour(3600.0),
    gpu_name="this machine",
    gpu_source="a dollar a second, so that dollars are seconds",
    tiers={},
)


@dataclass(frozen=True)
class _Cell:
    """One workload, one way."""

    context: int
    uses: int
    output: int
    way: str
    predicted_s: float
    measured_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.measured_s)

    @property
    def error(self) -> float:
        return abs(self.predicted_s - self.median_s) / self.median_s

    @property
    def spread(self) -> float:
        return (max(self.measured_s) - min(self.measured_s)) / self.median_s


def run(options: BenchOptions) -> Result:
    """Fit, predict, measure; then price the trace."""
    torch.set_num_threads(options.threads)
    cells, fitted = _measured_part(options)
    rows, saving, regret = _trace_part(options)
    errors = [cell.error for cell in cells]
    return Result(
        bench="cost",
        model=options.model,
        config=options.describe() | {"question_tokens": _QUESTION_TOKENS, "fitted": str(fitted)},
        rows=[*map(_cell_row, cells), *rows],
        summary={
            "median_error": statistics.median(errors),
            "p95_error": quantile(errors, 0.95),
            "machine_spread": statistics.median(cell.spread for cell in cells),
            "trace_saving": saving,
            "regret_cost": regret,
            "paper_table_error": _paper_error(),
        },
        notes=_NOTES,
        figures=(figure_of([_cell_row(cell) for cell in cells]),),
    )


_NOTES = (
    (
        "Measured times are medians of three repeats of a whole workload, nine of a short one, taken in"
        " rounds over all workloads; the fitting runs come before and after. `machine_spread` is the median"
        " over workloads of (largest - smallest) / median. Runs used for fitting are not among them."
    ),
    (
        "`trace_saving` is the smallest saving of `value` over LRU, in dollars of everything but decoding,"
        " over the capacities; `regret_cost` the largest excess over the clairvoyant policy. GPU, speeds"
        " and prices are the shipped llama-8b-h100 and aws-h100, which are assumptions."
    ),
    "`paper_table_error` is the largest relative difference from the numbers of arXiv 2503.14647.",
)


# --- this machine ---


def _measured_part(options: BenchOptions) -> tuple[list[_Cell], FittedSpeed]:
    with ExitStack() as stack:
        service = stack.enter_context(opened(options))
        bench = _Workloads(options, service)
        options.say("warming up")
        bench.once(bench.text(300), 8, reuse=False)
        held_out = _QUICK_HELD_OUT if options.quick else _HELD_OUT
        runs = bench.fitting_runs()
        measured = bench.measure(held_out)
        if not options.quick:
            runs += bench.fitting_runs()
        fitted = bench.fit(runs)
    return [
        _Cell(*work, way, _predicted(fitted, *work)[way], tuple(seconds))
        for (work, way), seconds in measured.items()
    ], fitted


Measured = dict[tuple[tuple[int, int, int], str], list[float]]
"""By workload and way the seconds of each repeat."""


def _ways(work: tuple[int, int, int]) -> tuple[str, ...]:
    context, uses, _ = work
    return ("stored", "computed") if context * uses <= _TEXT_TOKENS else ("stored",)


def _predicted(fitted: FittedSpeed, context: int, uses: int, output: int) -> dict[str, float]:
    """Seconds of a workload both ways, by the cost model."""
    work = Workload(
        context_tokens=context,
        uses=uses,
        prompt_tokens=_QUESTION_TOKENS,
        output_tokens=output,
        period=Seconds(0.0),
    )
    tier = TierPrice("stored", PerByteHour(0), fitted.bandwidth)
    found = bill(work, fitted.speed, _SECOND, replace(tier, latency_s=fitted.load_latency_s))
    return {"stored": found.stored.usd.value, "computed": found.text.value}


class _Workloads:
    """Requests over made-up contexts, timed."""

    def __init__(self, options: BenchOptions, service: api.Kdn) -> None:
        self._options = options
        self._service = service
        self._random = random.Random(options.seed)
        self._names = count()
        decoder = service.model.decoder
        self._vocabulary = decoder.config.vocab_size
        self._lowest = min(1000, self._vocabulary // 2)  # special tokens come first in most
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self._token_bytes = shape.token_bytes

    def text(self, tokens: int) -> tuple[int, ...]:
        """Token ids that no other text shares."""
        return tuple(self._random.randrange(self._lowest, self._vocabulary) for _ in range(tokens))

    def once(self, context: tuple[int, ...], output: int, *, reuse: bool) -> TimedRun:
        """One request over a context with a question of its own."""
        prompt = Prompt(
            (
                Segment(Role.DOCUMENT, context),
                Segment(Role.QUESTION, self.text(_QUESTION_TOKENS)),
            )
        )
        request = Request(
            f"cost-{next(self._names)}",
            prompt,
            Sampling(max_tokens=output, ignore_eos=True),
            reuse=reuse,
            retention=Retention.SHARED if reuse else Retention.NOTHING,
        )
        listener = Listener(self._options.clock)
        started_s = self._options.clock.now()
        self._service.submit(request).on_event(listener)
        usage = listener.wait()
        first, last = listener.times_s[0] - started_s, listener.times_s[-1] - started_s
        new = usage.prompt_tokens - usage.exact
        self._service.store.flush()
        return TimedRun(new, usage.exact, output, first, last)

    def fitting_runs(self) -> list[TimedRun]:
        """A round of requests that speeds are fitted to."""
        runs = []
        for context, output in _QUICK_FIT if self._options.quick else _FIT_COLD:
            self._options.say(f"fitting: {context} tokens")
            text = self.text(context)
            runs.append(self.once(text, output, reuse=False))
            runs.append(self.once(text, output, reuse=True))
            runs += [self.once(text, output, reuse=True) for _ in range(_FIT_HITS)]
        return runs

    def fit(self, runs: Sequence[TimedRun]) -> FittedSpeed:
        """The speeds that explain them."""
        return fit_speed(runs, self._token_bytes)

    def measure(self, works: Sequence[tuple[int, int, int]]) -> Measured:
        """Every workload both ways, in rounds over all of them, so that none has a moment of its own.

        Short ones run more often: a hiccup of the machine is a larger part of them.
        """
        found: Measured = {(work, way): [] for work in works for way in _ways(work)}
        for turn in range(1 if self._options.quick else _SHORT_REPEATS):
            for (work, way), seconds in found.items():
                context, uses, output = work
                if (
                    turn < _REPEATS
                    or context * uses + _STEP_TOKENS * output * uses <= _SHORT_TOKENS
                ):
                    self._options.say(f"{uses} x {context} tokens, {output} out: round {turn + 1}")
                    seconds.append(self._whole(context, uses, output, way == "stored"))
        return found

    def _whole(self, context: int, uses: int, output: int, reuse: bool) -> float:
        """Seconds of all uses of one context."""
        text = self.text(context)
        runs = [self.once(text, output, reuse=reuse) for _ in range(uses)]
        if reuse and any(not run.cached_tokens for run in runs[1:]):
            raise EngineFailed(f"a context of {context} tokens was stored and not found again")
        return sum(run.total_s for run in runs)


def _cell_row(cell: _Cell) -> Row:
    return {
        "what": cell.way,
        "context": cell.context,
        "uses": cell.uses,
        "output": cell.output,
        "predicted, s": cell.predicted_s,
        "measured, s": cell.median_s,
        "error": cell.error,
        "spread": cell.spread,
    }


# --- the trace ---


def _trace_part(options: BenchOptions) -> tuple[list[Row], float, float]:
    """Rows, the least saving of `value` over LRU, and its most regret."""
    requests, name = block_trace(options)
    speed, sheet = load_speed("llama-8b-h100"), load_sheet("aws-h100")
    rows, savings, regrets = list[Row](), [], []
    for capacity in (200, 800, 3000) if name == "made up" else CAPACITIES:
        size_bytes = capacity * requests[0].block_tokens * speed.token_bytes
        usd = {}
        for policy in (NOTHING, "lru", "value", OPTIMUM):
            options.say(f"{name}: {policy} at {capacity} blocks")
            served = served_by(policy, requests, speed.token_bytes, size_bytes)
            tier = None if policy == NOTHING else sheet.tier("nvme")
            found = price_trace(served, speed, sheet, tier, rented=SizeBytes(float(size_bytes)))
            usd[policy] = found.usd.value - found.decode.value
            rows.append(
                {
                    "what": f"{name}: {policy}",
                    "blocks of room": capacity,
                    "USD": usd[policy],
                    "delay, s": found.mean_delay.value,
                    "hit rate of tokens": found.hit_rate,
                }
            )
        savings.append(1 - usd["value"] / usd["lru"])
        regrets.append(usd["value"] / usd[OPTIMUM] - 1)
    return rows, min(savings), max(regrets)


def _paper_error() -> float:
    """The numbers of the study's section 2, ours against theirs."""
    sheet, speed = load_sheet("paper-2025"), load_speed("llama-7b-v100")
    io2, size = sheet.tier("io2"), speed.size(10_000)
    pairs = (
        (size.value, 5.2e9),
        (io2.storage.cost(size, Seconds(3600.0)).value, 8.8e-4),
        (sheet.gpu.cost(speed.context(10_000, 0)).value, 5.8e-3),
    )
    return max(abs(ours - theirs) / theirs for ours, theirs in pairs)


def figure_of(rows: Sequence[Row]) -> Figure:
    """How far predictions are from what was measured, by how long a workload took."""
    measured = [row for row in rows if row["what"] in ("computed", "stored")]
    lines: Lines = {}
    for way, points in lines_of(measured, "what", "measured, s", "predicted, s").items():
        lines[way] = sorted((seconds, told / seconds) for seconds, told in points)
    what = "predicted over measured"
    title = "Total time of a workload, predicted"
    return Figure(title, "measured, s", what, lines, level=1.0, joined=False)
