"""What a world is made of, in words: queues, links, applications, flows, scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kdn.errors import BadConfig
from kdn.net.world.traces import RateTrace

__all__ = [
    "LEAST_QUEUE",
    "App",
    "Ecn",
    "Flow",
    "Hop",
    "Marking",
    "Queue",
    "Scenario",
    "bulk",
    "frames",
    "steady",
    "web",
]

LEAST_QUEUE = 4
"""No buffer is smaller, in packets of 1,500 bytes, whatever is asked for."""

Ecn = Literal["not-ect", "ect0", "ect1"]
Marking = Literal["fixed", "random", "blocks", "by-type", "ask"]


@dataclass(frozen=True)
class Queue:
    """A hop's queue. The numbers are RFC 9332's defaults; other kinds read only `limit_ms`."""

    aqm: str = "dualpi2"
    """One of `queue.QUEUES`."""
    linux: bool = False
    limit_ms: float = 250.0
    """Buffer, in milliseconds at the link's mean rate, and of `LEAST_QUEUE` packets at least."""
    target_ms: float = 15.0
    update_ms: float = 15.0
    alpha_hz: float = 0.16
    beta_hz: float = 3.2
    coupling: float = 2.0
    min_th_us: float = 800.0
    range_us: float = 400.0
    """0 makes the ramp a step."""
    th_len: int = 1
    scheduler: Literal["wrr", "ts-fifo"] = "wrr"
    weights: tuple[int, int] = (1, 15)
    """Shares of the classic and of the low-latency queue when both wait: (1, 15) is 1/16."""
    shift_ms: float = 50.0

    @staticmethod
    def kernel() -> Queue:
        """Linux's sch_dualpi2 as it comes: step at 1 ms, rolls, 10 % for the classic queue."""
        return Queue(
            linux=True,
            update_ms=16.0,
            alpha_hz=41 / 256,
            beta_hz=819 / 256,
            min_th_us=1000.0,
            range_us=0.0,
            th_len=0,
            weights=(10, 90),
        )


@dataclass(frozen=True)
class Hop:
    """A queue and the link after it. `jitter_ms` is the mean of an exponential extra delay."""

    rate: RateTrace
    queue: Queue = Queue()
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True)
class App:
    """A chunk of data every interval, while it is on. No chunk means there is always more."""

    chunk_bytes: float | None = None
    interval_ms: float = 0.0
    random_chunks: bool = False
    random_intervals: bool = False
    on_s: float = 0.0
    """Mean of exponential on-times; 0 is always on."""
    off_s: float = 0.0

    def __post_init__(self) -> None:
        if self.chunk_bytes is not None and (self.chunk_bytes <= 0 or self.interval_ms <= 0):
            raise BadConfig(f"chunks need a size and an interval above zero, got {self}")


def bulk() -> App:
    """Always more to send."""
    return App()


def steady(mbps: float, packet: int = 1500, on_s: float = 0.0, off_s: float = 0.0) -> App:
    """A packet at regular times, `mbps` while on."""
    return App(packet, packet * 8e-3 / mbps, on_s=on_s, off_s=off_s)


def frames(
    mbps: float, per_s: float = 30.0, on_s: float = 0.0, off_s: float = 0.0, varying: bool = True
) -> App:
    """Video: a burst `per_s` times a second, of exponential size or (not `varying`) always alike."""
    return App(mbps * 125_000 / per_s, 1000 / per_s, varying, on_s=on_s, off_s=off_s)


def web(mbps: float, object_bytes: float) -> App:
    """Objects of exponential size at exponential intervals, `mbps` in the mean."""
    return App(object_bytes, object_bytes * 8e-3 / mbps, random_chunks=True, random_intervals=True)


@dataclass(frozen=True)
class Flow:
    """One sender and its receiver. Delays are one way; `back_ms` defaults to the way there."""

    control: str
    """One of `control.RULES`."""
    ecn: Ecn
    app: App = App()
    marking: Marking = "fixed"
    packet: int = 1500
    in_ms: float = 0.0
    out_ms: float = 0.0
    back_ms: float | None = None
    start_s: float = 0.0
    stop_s: float = 1e9
    decision_gap_ms: float = 1.0
    decision_cost_us: float = 0.0
    logged: bool = False
    """Keep a row per ACK; flows that choose per packet are always logged."""
    first_hop: int = 0
    last_hop: int | None = None
    max_window_packets: int = 8192

    def __post_init__(self) -> None:
        if self.packet < 64 or self.packet > 1500:
            raise BadConfig(f"a packet has 64 to 1500 bytes, got {self.packet}")


@dataclass(frozen=True)
class Scenario:
    """Hops in a row and the flows through them. Equal scenarios and seeds give equal runs."""

    name: str
    hops: tuple[Hop, ...]
    flows: tuple[Flow, ...]
    seconds: float = 10.0
    seed: int = 1
    tags: tuple[str, ...] = field(default=())
