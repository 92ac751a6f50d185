"""How many more requests a second does blending answer, at equal latency, than recomputing all?

Prompts of six documents, chosen by Zipf's law from a pool that is stored beforehand and put in
random order, arrive as a Poisson stream.  Each side is run at several rates, in shares of what it
could do back to back; the rate at which its mean time to first token meets the common limit, twice
an undisturbed full prefill, is read off between the measured points.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdn import api
from kdn.bench.blend.prompts import questions
from kdn.bench.common.lines import lines_of
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.contestants import Listener
from kdn.bench.engine.lineup import opened
from kdn.core import Blend, Prompt, Request, Retention, Sampling, quantile
from kdn.engine import kv_shape
from kdn.model import Document, Message
from kdn.plot import Figure

__all__ = ["Point", "rate_at", "run", "zipf_order"]

_POOL, _CHOSEN = 32, 6
_RATIO = 0.15
_LIMIT = 2.0
"""The latency at which the sides are compared, in undisturbed full prefills."""
_LOADS = (0.3, 0.6, 0.85)
"""Rates, as shares of what a side can do back to back."""
FULL, BLEND = "recompute all", "blend 15 %"


@dataclass(frozen=True)
class Point:
    """One rate of one side."""

    per_s: float
    ttft_s: float
    """Mean over the stream's requests."""
    p95_s: float


def run(options: BenchOptions) -> Result:
    """Both sides at each load, in turns."""
    torch.set_num_threads(options.threads)
    number = 6 if options.quick else 24
    loads = _LOADS[1:] if options.quick else _LOADS
    draw = random.Random(options.seed)
    with opened(options) as service:
        options.say("storing the documents")
        prompts = _prompts(service, options, draw, 8 if options.quick else _POOL, number)
        dtype = kv_shape(service.model).dtype
        alone = {side: _alone(service, options, side, prompts[:3]) for side in (FULL, BLEND)}
        points: dict[str, list[Point]] = {FULL: [], BLEND: []}
        for load in loads:
            for side, found in points.items():
                rate = load / alone[side]
                options.say(f"{side}: {number} requests at {rate:.2f} a second")
                found.append(_stream(service, options, side, prompts, rate, draw))
    limit_s = _LIMIT * alone[FULL]
    rates = {side: rate_at(found, limit_s, 1 / alone[side]) for side, found in points.items()}
    rows = [_row(side, point) for side, found in points.items() for point in found]
    return Result(
        bench="blend-load",
        model=options.model,
        config=options.describe() | {"requests": number, "pool": _POOL, "documents": _CHOSEN},
        rows=rows,
        summary={
            "throughput_gain": rates[BLEND] / rates[FULL],
            "back_to_back_gain": alone[FULL] / alone[BLEND],
            "ttft_limit_ms": 1000 * limit_s,
            "full_per_s": rates[FULL],
            "blend_per_s": rates[BLEND],
        },
        notes=(_note(number),),
        figures=(figure_of(rows),),
        dtype=dtype,
    )


def _note(number: int) -> str:
    return (
        f"Every document is stored before the first request; a stream of {number} requests is"
        " short, so a point carries the luck of its arrivals."
    )


def zipf_order(draw: random.Random, pool: int, chosen: int) -> list[int]:
    """`chosen` different numbers below `pool`, k drawn with a weight of 1 / (k + 1), in drawn order."""
    left = list(range(pool))
    found = []
    for _ in range(chosen):
        (one,) = draw.choices(left, weights=[1 / (k + 1) for k in left])
        left.remove(one)
        found.append(one)
    return found


def rate_at(points: Sequence[Point], limit_s: float, most: float) -> float:
    """The rate at which mean latency meets the limit, between neighbouring points of rising rate.

    Above the last point it is drawn towards `most`, the rate at which the queue never empties; below
    the first, it is the first point's rate scaled down.
    """
    if points[0].ttft_s >= limit_s:
        return points[0].per_s * limit_s / points[0].ttft_s
    for low, high in itertools.pairwise(points):
        if high.ttft_s >= limit_s:
            share = (limit_s - low.ttft_s) / (high.ttft_s - low.ttft_s)
            return low.per_s + share * (high.per_s - low.per_s)
    last = points[-1]
    return min(most, last.per_s * limit_s / last.ttft_s)


def _prompts(
    service: api.Kdn, options: BenchOptions, draw: random.Random, pool: int, number: int
) -> list[Prompt]:
    asked = questions(options.data, options.seed, number)
    texts = [text for one in questions(options.data, options.seed, 40) for text in one.documents]
    texts = list(dict.fromkeys(texts))[:pool]
    for text in texts:
        service.prefill(text)
    service.store.flush()
    found = []
    for one in asked:
        chosen = zipf_order(draw, len(texts), _CHOSEN)
        documents = [Document(None, texts[k]) for k in chosen]
        turns = [Message("system", one.instruction), Message("user", one.question)]
        found.append(service.prompts.segments(turns, documents))
    return found


def _request(side: str, prompt: Prompt, number: int) -> Request:
    return Request(
        id=f"{side} {number}",
        prompt=prompt,
        sampling=Sampling(max_tokens=1, ignore_eos=True),
        reuse=side != FULL,
        techniques=(Blend(_RATIO),) if side != FULL else (),
        retention=Retention.NOTHING,
    )


def _alone(service: api.Kdn, options: BenchOptions, side: str, prompts: Sequence[Prompt]) -> float:
    """Seconds a request takes when nothing else runs; the first is a warm-up."""
    found = []
    for number, prompt in enumerate((prompts[0], *prompts)):
        started = options.clock.now()
        listener = Listener(options.clock)
        service.submit(_request(side, prompt, number)).on_event(listener)
        listener.wait()
        found.append(listener.times_s[0] - started)
    return statistics.mean(found[1:])


def _stream(
    service: api.Kdn,
    options: BenchOptions,
    side: str,
    prompts: Sequence[Prompt],
    per_s: float,
    draw: random.Random,
) -> Point:
    """Requests at Poisson times; each one's first token is waited for from when it was due."""
    due_s = 0.0
    begun = options.clock.now()
    running: list[tuple[float, Listener]] = []
    for number, prompt in enumerate(prompts):
        due_s += draw.expovariate(per_s)
        time.sleep(max(begun + due_s - options.clock.now(), 0.0))
        listener = Listener(options.clock)
        service.submit(_request(side, prompt, number)).on_event(listener)
        running.append((begun + due_s, listener))
    for _, listener in running:
        listener.wait()
    waited = [listener.times_s[0] - at for at, listener in running]
    return Point(per_s, statistics.mean(waited), quantile(waited, 0.95))


def _row(side: str, point: Point) -> Row:
    return {
        "way": side,
        "requests a second": point.per_s,
        "mean first token, ms": 1000 * point.ttft_s,
        "95 % within, ms": 1000 * point.p95_s,
    }


def figure_of(rows: Sequence[Row]) -> Figure:
    """Mean waits for the first token, beside that of computing all on an idle machine."""
    lines = lines_of(rows, "way", "requests a second", "mean first token, ms")
    idle = min(lines[FULL])[1]
    title = "A Poisson stream of questions over stored documents"
    shown = {name: [(x, y / idle) for x, y in points] for name, points in lines.items()}
    what = "mean time to first token, times an idle full prefill"
    return Figure(title, "requests a second", what, shown, level=1.0)
