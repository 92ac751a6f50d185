"""How many GPUs, and how much of which tier, meet a delay at the least cost.

Two ways to the delay of a fleet: a queue of c servers, simulated request by request, and on paper
Allen and Cunneen's approximation of the waiting time in a G/G/c queue (Allen, Probability, Statistics
and Queueing Theory, 2nd ed. 1990, section 5.3) with an exponential tail.  The paper's way also
answers for ten or a thousand times the traffic: arrivals that many times as dense, over that many
copies of the library, so that a store that many times as large hits as often.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kdn.core import Served, quantile
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import PerHour, Seconds, SizeBytes
from kdn.errors import BadInput

__all__ = [
    "MOST_GPUS",
    "FleetPlan",
    "Jobs",
    "jobs_of",
    "plan_fleet",
    "simulated_p95",
    "waiting_p95",
]

_SHARE = 0.95
MOST_GPUS = 1_000_000
"""The largest fleet that is tried."""


@dataclass(frozen=True)
class Jobs:
    """What a trace asks of GPUs, in order of arrival."""

    arrival_s: tuple[float, ...]
    first_token_s: tuple[float, ...]
    """Loading and prefill, without queueing."""
    busy_s: tuple[float, ...]
    """For how long each occupies a GPU, its share of decoding included."""

    @property
    def span_s(self) -> float:
        return max(self.arrival_s[-1] - self.arrival_s[0], 1e-9)

    @property
    def load(self) -> float:
        """GPUs that are busy on average."""
        return sum(self.busy_s) / self.span_s


@dataclass(frozen=True)
class FleetPlan:
    """A fleet that meets the aim."""

    traffic: float
    """Times the trace's."""
    tier: str
    capacity: SizeBytes
    gpus: int
    p95: Seconds
    """To the first token, queueing included."""
    per_hour: PerHour
    hit_rate: float


def jobs_of(served: Sequence[Served], speed: Speed, tier: TierPrice | None) -> Jobs:
    """The GPU time of every request; `tier` None computes everything."""
    if len(served) < 2:
        raise BadInput("a fleet cannot be planned on fewer than two requests")
    first, busy = [], []
    for one in served:
        hit = one.hit_tokens if tier is not None else 0
        seconds = speed.prefill.seconds(one.num_tokens - hit, hit)
        if tier is not None and one.read_bytes:
            seconds += tier.latency_s + tier.bandwidth.time(SizeBytes(one.read_bytes)).value
        decode = speed.decode(one.output_tokens, one.num_tokens).value / speed.decode_batch
        first.append(seconds)
        busy.append(seconds + decode)
    return Jobs(tuple(one.at_s for one in served), tuple(first), tuple(busy))


def simulated_p95(jobs: Jobs, gpus: int) -> Seconds:
    """95th percentile of the time to the first token, first come first served."""
    free, delays = [0.0] * gpus, []
    for arrival, first, busy in zip(jobs.arrival_s, jobs.first_token_s, jobs.busy_s, strict=True):
        start = max(arrival, heapq.heappop(free))
        heapq.heappush(free, start + busy)
        delays.append(start - arrival + first)
    return Seconds(quantile(delays, _SHARE))


def waiting_p95(jobs: Jobs, gpus: int, traffic: float = 1.0) -> Seconds | None:
    """The same on paper, at `traffic` times the arrivals; None when the queue only grows.

    An upper estimate: the 95th percentiles of waiting and of serving are added.
    """
    load = jobs.load * traffic
    if load >= gpus:
        return None
    queued = _erlang_c(gpus, load)
    mean_s = statistics.fmean(jobs.busy_s)
    uneven = (_arrival_unevenness(jobs) + _squared_variation(jobs.busy_s)) / 2
    mean_wait_s = queued * mean_s / (gpus - load) * uneven
    over = queued / (1 - _SHARE)
    wait_s = mean_wait_s / queued * math.log(over) if over > 1 else 0.0
    return Seconds(wait_s + quantile(jobs.first_token_s, _SHARE))


def plan_fleet(
    served: Sequence[Served],
    speed: Speed,
    sheet: PriceSheet,
    tier: TierPrice | None,
    capacity: SizeBytes,
    slo: Seconds,
    traffic: float = 1.0,
) -> FleetPlan | None:
    """The smallest fleet that meets `slo`; None when none of at most MOST_GPUS does.

    Once the traffic is the trace's own the queue is simulated, else it is worked out on paper.
    `capacity` is for the trace's own traffic, and grows with it.
    """
    if traffic <= 0 or not math.isfinite(traffic):
        raise BadInput(f"traffic of {traffic} times the trace's: expected a number above 0")
    jobs = jobs_of(served, speed, tier)
    if quantile(jobs.first_token_s, _SHARE) > slo.value:
        return None
    gpus = _fewest(jobs, slo, traffic)
    p95 = _p95(jobs, gpus, traffic) if gpus is not None else None
    if gpus is None or p95 is None:
        return None
    held = capacity * traffic
    per_hour = sheet.gpu * float(gpus)
    if tier is not None:
        per_hour += PerHour(tier.storage.cost(held, Seconds(3600.0)).value) + tier.provisioned
    tokens = sum(one.num_tokens for one in served)
    hits = sum(one.hit_tokens for one in served) if tier is not None else 0
    name = "none" if tier is None else tier.name
    return FleetPlan(traffic, name, held, gpus, p95, per_hour, hits / max(1, tokens))


def _p95(jobs: Jobs, gpus: int, traffic: float) -> Seconds | None:
    return simulated_p95(jobs, gpus) if traffic == 1 else waiting_p95(jobs, gpus, traffic)


def _fewest(jobs: Jobs, slo: Seconds, traffic: float) -> int | None:
    """Bisection: more GPUs never make a queue longer."""

    def meets(gpus: int) -> bool:
        found = _p95(jobs, gpus, traffic)
        return found is not None and found <= slo

    # With a GPU for every request nobody waits, however much of a trace comes at one moment.
    most = min(MOST_GPUS, len(jobs.busy_s)) if traffic == 1 else MOST_GPUS
    low, high = 0, max(1, math.ceil(min(jobs.load * traffic, most)))
    while not meets(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival finds all servers busy (M/M/c)."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def _squared_variation(values: Sequence[float]) -> float:
    mean = statistics.fmean(values)
    return statistics.pvariance(values) / mean**2 if mean else 0.0


def _arrival_unevenness(jobs: Jobs) -> float:
    """Variance over mean of arrivals per window: 1 for a Poisson stream, more for bursts.

    Counted in windows, not in gaps, because traces write time down coarsely.
    """
    window_s = max(30.0, jobs.span_s / 500)
    counts = [0] * (int(jobs.span_s / window_s) + 1)
    for at_s in jobs.arrival_s:
        counts[int((at_s - jobs.arrival_s[0]) / window_s)] += 1
    mean = statistics.fmean(counts)
    return max(1.0, statistics.pvariance(counts) / mean)
