"""The conditions a policy is judged under, fixed before anything was trained on anything.

Flow 0 is the one that is judged: an L4S flow that may choose a queue per packet.  The families:

- `video`: real-time video in the low-latency queue (a frame is a burst that no mark can undo),
  a lightly used classic queue.  Transient congestion that hits some packets only.
- `busy`: the same beside a well-filled classic queue.
- `scalable`: the low-latency queue holds responsive flows only, as in the published ns-3 set-up
  (DCTCP and CUBIC at 5 Mbit/s nominal, switched on and off).
- `varying`: the link's rate moves as radio links do.
- `own`: the judged flow is itself a bulk transfer or a video.

Training draws from `training_scenario`, which shares neither seeds nor exact conditions with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdn.errors import BadInput
from kdn.net.world.records import MS
from kdn.net.world.spec import App, Flow, Hop, Marking, Queue, Scenario, bulk, frames, steady, web
from kdn.net.world.traces import RateTrace, constant

__all__ = [
    "EVALUATION",
    "LIGHT",
    "LISTS",
    "PUBLISHED",
    "TRANSIENT",
    "WEIGHTS",
    "evaluation",
    "over_link",
    "radio",
    "training_scenario",
    "with_adopters",
]

WEIGHTS = {"1/16": (1, 15), "10%": (10, 90)}
"""The classic queue's share when both queues wait."""


def radio(mean_mbps: float, seed: int) -> RateTrace:
    """A made-up radio link: log-normal rate with 0.25 s of memory, a new value every 25 ms."""
    random = np.random.default_rng(seed)
    level = np.zeros(400)
    for i in range(1, len(level)):
        level[i] = 0.9 * level[i - 1] + 0.25 * random.normal()
    rates = np.clip(mean_mbps * np.exp(level - 0.3), 0.1 * mean_mbps, 1.5 * mean_mbps) * 1e6
    return RateTrace(np.arange(len(level)) * 25 * MS, rates, len(level) * 25 * MS)


def _own(app: App) -> Flow:
    return Flow("prague", "ect1", app, in_ms=9.0, out_ms=1.0, logged=True)


def _videos(count: int, mbps: float, per_s: float = 60.0, varying: bool = True) -> tuple[Flow, ...]:
    app = frames(mbps, per_s, varying=varying)
    return tuple(
        Flow("unresponsive", "ect1", app, in_ms=10.0 + i, start_s=0.013 * i) for i in range(count)
    )


def _key_frames(count: int, mbps: float) -> tuple[Flow, ...]:
    """One burst a second from each of `count` videos, `mbps` each, beside its other frames."""
    app = frames(mbps, 1.0, varying=False)
    return tuple(
        Flow("unresponsive", "ect1", app, in_ms=10.0 + i, start_s=0.1 + 0.4 * i)
        for i in range(count)
    )


def _pages(mbps: float, count: int = 2) -> tuple[Flow, ...]:
    """Short classic transfers, `mbps` altogether."""
    return tuple(
        Flow("cubic", "ect0", web(mbps / count, 50e3), in_ms=10.0 + 3 * i) for i in range(count)
    )


def _downloads(count: int) -> tuple[Flow, ...]:
    return tuple(Flow("cubic", "ect0", bulk(), in_ms=10.0 + 3 * i) for i in range(count))


def _switched(control: str, count: int, owd_ms: float) -> tuple[Flow, ...]:
    """5 Mbit/s nominal: 10 while on, half of the time."""
    app = steady(10.0, on_s=0.5, off_s=0.5)
    ecn = "ect1" if control == "dctcp" else "not-ect"
    return tuple(
        Flow(control, ecn, app, in_ms=owd_ms * (0.5 + i / count))  # type: ignore[arg-type]
        for i in range(count)
    )


def _case(
    name: str,
    family: str,
    others: tuple[Flow, ...],
    rate: RateTrace | float = 100.0,
    app: App | None = None,
) -> Scenario:
    link = constant(rate * 1e6) if isinstance(rate, float) else rate
    flows = (_own(app or steady(5.0)), *others)
    return Scenario(name, (Hop(link),), flows, seconds=12.0, seed=7, tags=(family,))


def _published(multiple: float, owd_ms: float) -> Scenario:
    """The ns-3 set-up of the published system's re-implementation: responsive flows only."""
    scalable = _switched("dctcp", round(15 * multiple), owd_ms)
    classic = _switched("cubic", max(round(4 * multiple), 1), owd_ms)
    case = _case(f"published x{multiple:g}, {owd_ms:g} ms", "published", (*scalable, *classic))
    own = replace(case.flows[0], in_ms=owd_ms - 1.0)
    return replace(case, flows=(own, *case.flows[1:]))


def _bursts(
    pages_mbps: float, coder: str, count: int, mbps: float, per_s: float, link: float
) -> Scenario:
    """Bursts in the low-latency queue that no mark undoes, and pages in the classic one."""
    others = _videos(count, mbps, per_s, varying=coder == "varying")
    if coder == "key":
        others += _key_frames(count, mbps / 8.0)
    name = f"{count} x {mbps:g}M at {per_s:g}/s on {link:g}M, {coder} frames"
    if pages_mbps != 2.0:
        name += f", {pages_mbps:g}M pages"
    pages = _pages(pages_mbps) if pages_mbps else ()
    return _case(name, f"transient-{coder}", (*others, *pages), link)


def _grid(pages_mbps: float) -> tuple[Scenario, ...]:
    """Three coders by four videos and links."""
    return tuple(
        _bursts(pages_mbps, coder, *video)
        for coder in ("constant", "varying", "key")
        for video in (
            (1, 30.0, 60.0, 100.0),
            (2, 15.0, 60.0, 100.0),
            (1, 40.0, 72.0, 100.0),
            (1, 15.0, 30.0, 50.0),
        )
    )


EVALUATION: tuple[Scenario, ...] = (
    _case("one 15M video, idle classic", "video", _videos(1, 15)),
    _case("one 15M video, 1M pages", "video", (*_videos(1, 15), *_pages(1))),
    _case("one 30M video, 5M pages", "video", (*_videos(1, 30), *_pages(5))),
    _case("one 40M headset at 72/s, 1M pages", "video", (*_videos(1, 40, 72), *_pages(1))),
    _case("two 15M videos, 2M pages", "video", (*_videos(2, 15), *_pages(2))),
    _case("three 15M videos, 5M pages", "video", (*_videos(3, 15), *_pages(5))),
    _case("15M video at 30/s on 50M, 2M pages", "video", (*_videos(1, 15, 30), *_pages(2)), 50.0),
    _case("two 20M videos, 20M pages", "busy", (*_videos(2, 20), *_pages(20, 4))),
    _case("one 30M video, one download", "busy", (*_videos(1, 30), *_downloads(1))),
    _case(
        "15 DCTCP, 4 CUBIC, 20 ms",
        "scalable",
        (*_switched("dctcp", 15, 20.0), *_switched("cubic", 4, 20.0)),
    ),
    _case("15 DCTCP, 1M pages, 20 ms", "scalable", (*_switched("dctcp", 15, 20.0), *_pages(1))),
    _case("radio 60M, 15M video, 2M pages", "varying", (*_videos(1, 15), *_pages(2)), radio(60, 2)),
    _case(
        "radio 60M, 4 Prague, 1 download",
        "varying",
        (*(Flow("prague", "ect1", in_ms=10.0 + 3 * i) for i in range(4)), *_downloads(1)),
        radio(60, 3),
    ),
    _case("own bulk, one 30M video, 2M pages", "own", (*_videos(1, 30), *_pages(2)), app=bulk()),
    _case(
        "own 4M video, one 30M video, 2M pages",
        "own",
        (*_videos(1, 30), *_pages(2)),
        app=frames(4.0, 30.0),
    ),
)


PUBLISHED: tuple[Scenario, ...] = (
    _published(0.5, 20.0),
    _published(1.0, 20.0),
    _published(1.0, 40.0),
    _published(1.0, 100.0),
    _published(2.5, 20.0),
    _published(5.0, 20.0),
)
"""What is known of the published set-up: 15 DCTCP and 4 CUBIC flows of 5 Mbit/s, swept."""

TRANSIENT: tuple[Scenario, ...] = _grid(2.0)
"""The published premise, as a full grid: congestion that hits only some packets of the L queue."""

LIGHT: tuple[Scenario, ...] = (*_grid(0.0), *_grid(0.5))
"""The same bursts where the classic queue is nearly empty: no pages, or 0.5 Mbit/s."""

LISTS: dict[str, tuple[Scenario, ...]] = {
    "frozen": EVALUATION,
    "published": PUBLISHED,
    "transient": TRANSIENT,
    "light": LIGHT,
}
"""The lists by name. The first was fixed before anything was trained; no list drops a row."""


def evaluation(
    scenario: Scenario,
    marking: Marking,
    weight: str = "1/16",
    seconds: float | None = None,
    seed: int | None = None,
    cost_us: float = 0.0,
) -> Scenario:
    """The scenario with flow 0 marking its packets so, the WRR share and the cost of deciding."""
    if weight not in WEIGHTS:
        raise BadInput(f"no classic share {weight!r}; there are {', '.join(WEIGHTS)}")
    own = replace(scenario.flows[0], marking=marking, decision_cost_us=cost_us)
    hops = tuple(
        replace(hop, queue=replace(hop.queue, weights=WEIGHTS[weight])) for hop in scenario.hops
    )
    return replace(
        scenario,
        hops=hops,
        flows=(own, *scenario.flows[1:]),
        seconds=seconds or scenario.seconds,
        seed=scenario.seed if seed is None else seed,
    )


def over_link(scenario: Scenario, link: RateTrace, name: str) -> Scenario:
    """The scenario with its first hop's rate replaced by a recorded link."""
    first, *rest = scenario.hops
    hops = (replace(first, rate=link), *rest)
    return replace(scenario, name=f"{scenario.name}, over {name}", hops=hops)


def with_adopters(
    scenario: Scenario, count: int, marking: Marking, cost_us: float = 0.0
) -> Scenario:
    """`count` flows like flow 0 in its place, all marking so: what if all flows did it?"""
    own = replace(scenario.flows[0], marking=marking, decision_cost_us=cost_us, logged=True)
    adopters = tuple(
        replace(own, in_ms=own.in_ms + 1.7 * i, start_s=0.003 * i) for i in range(count)
    )
    return replace(scenario, flows=(*adopters, *scenario.flows[1:]))


def training_scenario(seed: int, seconds: float = 10.0, marking: Marking = "blocks") -> Scenario:
    """A random condition; flow 0 marks in random blocks, so that its log teaches both queues."""
    random = np.random.default_rng(10_000 + seed)
    mbps = float(random.choice([40.0, 60.0, 80.0, 100.0, 120.0]))
    link = constant(mbps * 1e6) if random.random() < 0.75 else radio(0.7 * mbps, 10_000 + seed)
    others: list[Flow] = []
    if random.random() < 0.8:
        budget = mbps * random.uniform(0.1, 0.55)
        count = int(random.integers(1, 4))
        per_s = float(random.choice([24, 30, 50, 60, 72, 90]))
        coder = np.random.default_rng(20_000 + seed)  # of its own, so that other draws stay put
        others += _videos(count, budget / count, per_s, varying=bool(coder.random() < 0.5))
        if coder.random() < 0.3:
            others += _key_frames(count, coder.uniform(1.0, 4.0))
    if random.random() < 0.4:
        others += _switched("dctcp", int(random.integers(3, 16)), random.uniform(5, 60))
    if random.random() < 0.7:
        others += _pages(mbps * random.uniform(0.005, 0.2), int(random.integers(1, 5)))
    if random.random() < 0.25:
        others += _downloads(int(random.integers(1, 3)))
    apps = (steady(random.uniform(2, 10)), steady(random.uniform(2, 10)), bulk(), frames(4.0, 30.0))
    own = replace(
        _own(apps[int(random.integers(4))]),
        marking=marking,
        in_ms=float(random.uniform(2, 40)),
    )
    weights = ((1, 15), (10, 90))[int(random.integers(2))]
    hop = Hop(link, Queue(weights=weights))
    return Scenario(f"training {seed}", (hop,), (own, *others), seconds, 10_000 + seed)
