"""The links that controllers learn on and are judged on: random ones as the paper's, and recorded ones.

Bandwidths are a third to a half of the published 0.6 to 6 Mbit/s, since our pictures are small: what
matters is how the link compares with the rates of the codec.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdn.net.rtc.call import Link
from kdn.net.world.records import SECOND
from kdn.net.world.traces import RateTrace, read_link

__all__ = [
    "HELD_OUT",
    "changing_link",
    "held_out_links",
    "random_link",
    "recorded_links",
    "training_seed",
    "validation_links",
]

LEAST_MBPS, MOST_MBPS = 0.2, 3.0
HELD_OUT = 12
"""Synthetic links of the evaluation; their seeds are used for nothing else."""

_SECONDS = 30
_EVALUATION_SEED = 1_000_000
_VALIDATION_SEED = 2_000_000


def random_link(seed: int) -> Link:
    """Bandwidth redrawn every few seconds between two log-uniform bounds, any delay, queue and loss."""
    random = np.random.default_rng(seed)
    most = _log_uniform(random, LEAST_MBPS, MOST_MBPS)
    least = _log_uniform(random, LEAST_MBPS, most)
    every_s = float(random.uniform(0, 15))
    changes = np.arange(0, _SECONDS, every_s) if every_s > 0.5 else np.zeros(1)
    rates = random.uniform(least, most, len(changes)) * 1e6
    loss = _log_uniform(random, 1e-5, 0.05)
    return Link(
        f"random-{seed}",
        RateTrace((changes * SECOND).astype(np.int64), rates, _SECONDS * SECOND),
        delay_ms=float(random.uniform(2, 100)),
        queue_packets=int(random.integers(4, 101)),
        loss=0.0 if loss < 1e-4 else loss,
    )


def changing_link(seed: int, seconds: float) -> Link:
    """A link for one long call: another rate every 3 to 15 s, never the same course twice."""
    random = np.random.default_rng(seed)
    most = _log_uniform(random, 0.5, 1.5)  # about the codec's own rates
    least = _log_uniform(random, 0.1, most / 2)
    changes = np.cumsum(random.uniform(3.0, 15.0, int(seconds / 3.0) + 1))
    changes = np.append(0.0, changes[changes < seconds])
    rates = random.uniform(least, most, len(changes)) * 1e6
    trace = RateTrace((changes * SECOND).astype(np.int64), rates, int(seconds * SECOND))
    delay_ms, queue = float(random.uniform(10, 60)), int(random.integers(20, 81))
    return Link(f"changing-{seed}", trace, delay_ms, queue, loss=_log_uniform(random, 1e-4, 0.02))


def training_seed(number: int) -> int:
    """The seed of a link to learn on, for any whole number: never one that judges what was learned."""
    return number % _EVALUATION_SEED


def validation_links(count: int = 8) -> list[Link]:
    """The same random family with seeds that choose among policies, and do nothing else."""
    return [random_link(_VALIDATION_SEED + i) for i in range(count)]


def held_out_links(count: int = HELD_OUT) -> list[Link]:
    """The same random family with seeds of the evaluation alone."""
    return [random_link(_EVALUATION_SEED + i) for i in range(count)]


def recorded_links(folder: Path, most: int = 12) -> list[Link]:
    """The cellular and Puffer traces under `folder`, at most so many, slowed to the codec's rates.

    Seconds-and-rate files are scaled to a mean of 1.2 Mbit/s; mahimahi files are thinned to at most that in
    full packets, 100 opportunities a second: fewer than a call of 25 pictures a second has packets.
    """
    names = sorted(folder.glob("cellular/*.gz")) + sorted(folder.glob("puffer/*.gz"))
    return [
        Link(path.name.removesuffix(".gz").removesuffix(".txt"), _slowed(read_link(path)))
        for path in names[:most]
    ]


def _slowed(trace: RateTrace, mean_bps: float = 1.2e6) -> RateTrace:
    share = mean_bps / trace.mean_bps
    if share >= 1.0:
        return trace
    if not trace.opportunities:
        return RateTrace(trace.times_ns, trace.bits_per_s * share, trace.period_ns)
    every = np.floor(np.arange(len(trace.times_ns)) * share)
    kept = trace.times_ns[np.diff(every, prepend=-1.0) > 0]
    return RateTrace(kept, np.zeros(len(kept)), trace.period_ns, opportunities=True)


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
