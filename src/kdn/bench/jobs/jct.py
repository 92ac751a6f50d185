"""Does knowing how long a job will take, and what is cached now, serve one-token jobs better?

Live runs of the real engine first, with the clock as it is; the simulator must come to the same
latencies, and then covers the whole grid.  Every policy has the same cache and the same packing of
short prompts: what differs is who is next.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import torch

from kdn import api
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.contestants import Listener
from kdn.bench.engine.lineup import opened
from kdn.bench.jobs.grid import (
    FCFS,
    LIVE_CACHE,
    OURS,
    PACK_TOKENS,
    RIVAL,
    Cell,
    cell_of,
    mean_latency_figure,
    shown,
    simulate_grid,
    simulated,
    throughput,
)
from kdn.bench.jobs.jobs import (
    ARRIVALS,
    Posts,
    credit_lengths,
    post_jobs,
    with_arrivals,
)
from kdn.calibration.times import JctMeter
from kdn.core import JctModel, Prompt, Request, Retention, Role, Sampling, Segment, TokenIds
from kdn.engine import Engine, EngineLimits, kv_shape
from kdn.reuse import PrefixReuse, Stack
from kdn.schedule import Ended, PrefixJob, RequestQueue, make_policy
from kdn.store import open_store

__all__ = ["run"]

LIVE = Posts(users=20, posts=4, profile_mean=500.0, profile_spread=100.0)
_LIVE_LOADS = (0.5, 1.0, 2.0)
_GRID = ((24, 0), (128, 0), (400, 0), (800, 0), (24, 400), (128, 400), (24, 800), (24, 1600))
_PACKED = ((24, 400, 3), (24, 400, 8), (24, 800, 8), (24, 1600, 8))
_WARM_UPS = 4
_WAYS = (
    "`calibrated` is PrefillOnly's order, `families` ours. `shortest-miss` also recounts cached tokens "
    "before every pass, without ageing. All have the same cache and the same packing."
)
_LOADS_NOTE = (
    "Live runs are one each. Loads are multiples of what FCFS gets through with all requests there from the"
    " start. Equal latency allows 2 %. Credit checks share nothing, so that bursts and caches mean nothing to"
    " them."
)


def run(options: BenchOptions) -> Result:
    """Fit the time model, run live, compare with the simulator, then simulate the grid."""
    torch.set_num_threads(options.threads)
    with opened(options) as service:
        options.say("fitting the time of a prompt")
        grid, packed = (_GRID[:5], _PACKED[:1]) if options.quick else (_GRID, _PACKED)
        meter = JctMeter(service.model, service.parts.attention, options.clock, grid, packed)
        with closing(meter):
            live, model = _live_rows(options, service, meter)
        dtype = kv_shape(service.model).dtype
        lengths = credit_lengths(
            _credit_file(options.data), service.model.tokenizer.encode, 60, options.seed
        )
    options.say("simulating the grid")
    cells, details = simulate_grid(options, model, lengths)
    gains = [gain for cell in cells for gain in cell.qps]
    return Result(
        bench="jct",
        model=options.model,
        config=options.describe()
        | {
            "pack_tokens": PACK_TOKENS,
            "jct": {
                "pass_s": model.pass_s,
                "token_s": model.token_s,
                "pair_s": model.pair_s,
                "cached_s": model.cached_s,
                "prompt_s": model.prompt_s,
                "error": model.error,
            },
        },
        rows=[*live, *(cell.row() for cell in cells), *details],
        summary={
            "qps_gain_fcfs": geometric_mean(gains),
            "qps_gain_best": max(gains),
            "qps_gain_worst": min(gains),
            "qps_gain_paper": geometric_mean([gain for cell in cells for gain in cell.paper]),
            "mean_gain_spf_batched": geometric_mean([g for cell in cells for g in cell.mean_rival]),
            "p99_gain_fcfs": geometric_mean([g for cell in cells for g in cell.p99]),
            "jct_error": statistics.median(abs(float(str(row["sim error"]))) for row in live),
            "jct_error_worst": max(abs(float(str(row["sim error"]))) for row in live),
        },
        notes=(
            _WAYS,
            _LOADS_NOTE,
        ),
        figures=(mean_latency_figure(details),),
        dtype=dtype,
    )


def _credit_file(data: Path | None) -> Path | None:
    """The German credit records, where the data folder has them."""
    return None if data is None else data / "credit_german" / "german.data"


# --- live ------------------------------------------------------------------------------------


def _live_rows(
    options: BenchOptions, service: api.Kdn, meter: JctMeter
) -> tuple[list[Row], JctModel]:
    """The live runs beside what the simulator says of them, and the model it says it with.

    The time model is measured between the runs, a round at a time, so that both see the same machine.
    """
    size = Posts(8, 3, 200.0, 40.0) if options.quick else LIVE
    users = 3 if options.quick else LIVE_CACHE
    loads = _LIVE_LOADS[1:2] if options.quick else _LIVE_LOADS
    for _ in range(4):
        meter.round()
    first = meter.fit()
    stage = _Stage(service, options, first, round(users * size.profile_mean))
    jobs = post_jobs(size, options.seed)
    stage.live(jobs[: 2 * size.posts], FCFS)  # warms up
    runs: list[tuple[Row, Sequence[PrefixJob], Cell]] = []
    for pattern in ARRIVALS:
        base = throughput(jobs, pattern, first, stage.cache_tokens, options.seed)
        for load in loads:
            arrived = with_arrivals(jobs, pattern, load * base, options.seed)
            for policy in (FCFS, RIVAL, OURS):
                options.say(f"live: {pattern} arrivals, load {load:g}, {policy}")
                row: Row = {"what": "live", "arrivals": pattern, "load": load, "policy": policy}
                runs.append((row, arrived, cell_of(stage.live(arrived, policy))))
                meter.round()
    model = meter.fit()
    expected = [
        simulated(arrived, str(row["policy"]), model, stage.cache_tokens)
        for row, arrived, _ in runs
    ]
    return [
        _compared(row, found, paper) for (row, _, found), paper in zip(runs, expected, strict=True)
    ], model


def _compared(row: Row, found: Cell, expected: Cell) -> Row:
    return (
        row
        | shown(found)
        | {
            "simulated mean, s": expected.mean_s,
            "sim error": expected.mean_s / found.mean_s - 1,
            "sim error of jobs/s": expected.per_s / found.per_s - 1,
        }
    )


class _Stage:
    """The real engine over a memory tier of a few users, fed by the clock."""

    def __init__(
        self, service: api.Kdn, options: BenchOptions, model: JctModel, cache_tokens: int
    ) -> None:
        self.cache_tokens = cache_tokens
        self._service = service
        self._options = options
        self._jct = model
        self._shape = kv_shape(service.model)
        self._texts: dict[str, TokenIds] = {}

    def live(self, jobs: Sequence[PrefixJob], policy: str) -> list[Ended]:
        """Every job at its time, and when its token was there."""
        service, clock = self._service, self._options.clock
        store = open_store(None, memory_bytes=self.cache_tokens * self._shape.token_bytes)
        fingerprint = service.model.decoder.fingerprint
        reuse = Stack([PrefixReuse(store, self._shape, lambda _: fingerprint)])
        room = RequestQueue(make_policy(policy, self._jct))
        limits = EngineLimits(1 << 30, pack_tokens=PACK_TOKENS, idle_prefix_bytes=0)
        with closing(store), closing(reuse):
            engine = Engine(service.model, service.parts.attention, reuse, limits, clock, room)
            with closing(engine):
                return self._feed(engine, jobs)

    def _feed(self, engine: Engine, jobs: Sequence[PrefixJob]) -> list[Ended]:
        clock = self._options.clock
        requests = [(job, self._request(job)) for job in sorted(jobs, key=lambda j: j.arrival_ns)]
        for number in range(
            _WARM_UPS
        ):  # a new engine is a new thread, and its first passes are slow
            listener = Listener(clock)
            warm = self._request(PrefixJob(f"warm{number}", 0, f"warm{number}", 100, 120))
            engine.submit(replace(warm, retention=Retention.NOTHING)).on_event(listener)
            listener.wait()
        started, listeners = clock.now(), []
        for job, request in requests:
            time.sleep(max(started + job.arrival_ns / 1e9 - clock.now(), 0))
            listener = Listener(clock)
            engine.submit(request).on_event(listener)
            listeners.append(listener)
        ended = []
        for (job, _), listener in zip(requests, listeners, strict=True):
            usage = listener.wait()
            end = round((listener.times_s[0] - started) * 1e9)
            began = job.arrival_ns + round(usage.queue_ms * 1e6)
            ended.append(Ended(job.id, job.arrival_ns, began, end, usage.exact))
        return sorted(ended, key=lambda one: one.end_ns)

    def _request(self, job: PrefixJob) -> Request:
        prefix = self._tokens(job.prefix, job.num_prefix)
        own = self._tokens(job.id, job.num_tokens - job.num_prefix)
        prompt = Prompt((Segment(Role.DOCUMENT, prefix), Segment(Role.QUESTION, own)))
        sampling = Sampling(
            max_tokens=1, ignore_eos=True, allowed=(5, 6), ranked=(5, 6), logprobs=0
        )
        return Request(job.id, prompt, sampling, retention=Retention.SHARED)

    def _tokens(self, name: str, count: int) -> TokenIds:
        rng, vocabulary = random.Random(name), self._service.model.decoder.config.vocab_size
        ids = range(min(1000, vocabulary // 2), min(30_000, vocabulary))
        return tuple(rng.choices(ids, k=count))


# --- on paper --------------------------------------------------------------------------------
