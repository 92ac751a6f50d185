"""A call over a simulated network: one video flow, a controller's rate, and what the viewer got."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadConfig, KdnError
from kdn.net.rtc import loop
from kdn.net.rtc.codec.packets import LEAST_PACKETS, MOST_PAYLOAD
from kdn.net.rtc.codec.picture import ssim_db
from kdn.net.rtc.rows import ACK, CALL, DECODED, FRAME, SENT, CallState
from kdn.net.rtc.tables import RateTable
from kdn.net.world.build import build
from kdn.net.world.records import MS, SECOND, State
from kdn.net.world.spec import LEAST_QUEUE, App, Flow, Hop, Queue, Scenario
from kdn.net.world.traces import RateTrace

__all__ = [
    "MAX_RATE_BPS",
    "MIN_RATE_BPS",
    "PACKET_BYTES",
    "START_RATE_BPS",
    "STEP_MS",
    "Call",
    "CallOutcome",
    "Controller",
    "Decision",
    "Feedback",
    "Link",
    "mean_outcome",
    "run_call",
]

MIN_RATE_BPS, MAX_RATE_BPS = 60e3, 12e6
START_RATE_BPS = 300e3
STEP_MS = 50.0
"""A controller is asked so often."""
STALL_MS = 200.0
"""A longer gap between two shown pictures is a stall."""

_HEADER = 28
"""IPv4 and UDP."""
PACKET_BYTES = MOST_PAYLOAD + _HEADER
"""A full packet of a call, headers included."""
_PACE = 1.5
_PACE_FLOOR = 100e3
_MOST_ACKS = 4096


@dataclass(frozen=True)
class Link:
    """The path of a call. `queue_packets` counts packets of 1500 bytes, 4 at least; delays are one way."""

    name: str
    rate: RateTrace
    delay_ms: float = 25.0
    queue_packets: int = 50
    loss: float = 0.0
    aqm: str = "droptail"
    others: tuple[Flow, ...] = ()
    """Flows that share the bottleneck."""

    def __post_init__(self) -> None:
        if self.queue_packets < LEAST_QUEUE or self.delay_ms < 0 or not 0 <= self.loss < 1:
            raise BadConfig(
                f"link {self.name!r}: a queue of at least {LEAST_QUEUE} packets, a delay of at least 0 and "
                f"a loss below 1 are wanted; got {self.queue_packets}, {self.delay_ms} and {self.loss}"
            )

    def hop(self) -> Hop:
        """The bottleneck."""
        limit_ms = self.queue_packets * 1500 * 8e3 / self.rate.mean_bps
        return Hop(self.rate, Queue(self.aqm, limit_ms=limit_ms), self.delay_ms, loss=self.loss)

    def scenario(self, seconds: float, seed: int) -> Scenario:
        """The packet world of the call; flow 0 is driven from outside."""
        own = Flow("unresponsive", "not-ect", App(1.0, 1e12), start_s=1e9, logged=True)
        return Scenario(self.name, (self.hop(),), (own, *self.others), seconds, seed)


@dataclass(frozen=True)
class Feedback:
    """What the sender has heard since it was last asked."""

    now_ns: int
    acks: NDArray[Any]
    """ACK rows, in order of arrival."""
    num_lost: int
    """Packets found lost in this time."""
    num_sent_bytes: int
    waiting_bytes: int
    """Bytes that wait at the pacer."""
    in_flight_bytes: int
    rate_bps: float
    """The rate until now."""
    frames: NDArray[Any]
    """FRAME rows that were decoded or skipped since, as the acknowledgements tell."""
    first_frame: int
    """The number of the first of them."""


@dataclass(frozen=True)
class Decision:
    """The rate from now on. A probe fills the next step with padding up to `probe_bps`."""

    rate_bps: float
    probe_bps: float = 0.0


class Controller(Protocol):
    """Sets the rate of a call."""

    def decide(self, feedback: Feedback) -> Decision:
        """What to do until the next step."""


@dataclass(frozen=True)
class CallOutcome:
    """What the viewer of a call got."""

    ssim_db: float
    """Of the mean similarity of shown pictures."""
    psnr_db: float
    p95_delay_ms: float
    """From capture to decoding."""
    mean_delay_ms: float
    stalls_per_minute: float
    stall_share: float
    """Share of the time spent in stalls."""
    undecoded_share: float
    """Pictures that were never shown."""
    sent_mbps: float
    loss: float
    link_mbps: float


@dataclass
class Call:
    """A running call. `step` sets the rate for the next `STEP_MS`."""

    table: RateTable
    link: Link
    seconds: float = 30.0
    seed: int = 1
    start_bps: float = START_RATE_BPS
    state: CallState = field(init=False)
    world: State = field(init=False)
    _lost: int = 0
    _sent: int = 0
    _seen: int = 0

    def __post_init__(self) -> None:
        self.state = _fresh(self.table, self.seconds, self.start_bps)
        scenario = self.link.scenario(self.seconds, self.seed)
        self.world = build(scenario, num_packets=1 << 15, num_log=1 << 12)
        self._end = int(self.seconds * SECOND)

    @property
    def now_ns(self) -> int:
        return int(self.world.clock[0]["now"])

    @property
    def done(self) -> bool:
        return self.now_ns >= self._end

    @property
    def frames(self) -> NDArray[Any]:
        """FRAME rows of all pictures so far."""
        return np.asarray(self.state.frames[: int(self.state.call[0]["num_frames"])])

    def step(self, rate_bps: float, probe_bps: float = 0.0) -> Feedback:
        """Send at this rate (clamped to what a call may have) for one step; what was heard in it."""
        row = self.state.call[0]
        row["rate"] = min(max(rate_bps, MIN_RATE_BPS), MAX_RATE_BPS)
        row["probe"] = min(probe_bps, MAX_RATE_BPS)
        self.state.num_acks[0] = 0
        self._advance(min(self.now_ns + int(STEP_MS * MS), self._end))
        return self._feedback()

    def _advance(self, until: int) -> None:
        reason = loop.advance(self.state, self.world, until, True)
        if reason == loop.FULL:
            raise KdnError("a call has more packets than it was built for; lower its highest rate")

    def _feedback(self) -> Feedback:
        row = self.state.call[0]
        lost, sent, decided = int(row["num_lost"]), int(row["sent_bytes"]), int(row["next_decode"])
        heard = Feedback(
            now_ns=self.now_ns,
            acks=self.state.acks[: int(self.state.num_acks[0])],
            num_lost=lost - self._lost,
            num_sent_bytes=sent - self._sent,
            waiting_bytes=int(row["waiting_bytes"]),
            in_flight_bytes=self._in_flight(),
            rate_bps=float(row["rate"]),
            frames=self.state.frames[self._seen : decided],
            first_frame=self._seen,
        )
        self._lost, self._sent, self._seen = lost, sent, decided
        return heard

    def _in_flight(self) -> int:
        return int(self.world.flows[0]["inflight"])

    def outcome(self, warm_up_s: float = 1.0) -> CallOutcome:
        """The metrics of the call so far; pictures of the first seconds are left out."""
        frames = self.frames[self.frames["t"] >= warm_up_s * SECOND]
        ripe = frames[frames["t"] < self.now_ns - SECOND]  # younger ones may still be under way
        seen = frames[frames["fate"] == DECODED]
        shown = seen if len(seen) else self._first_frame()
        delays = (shown["t_decode"] - shown["t"]) / MS
        begin = min(warm_up_s * SECOND, self.now_ns)  # a freeze may have begun before
        moments = self.frames["t_decode"][self.frames["fate"] == DECODED]
        moments = moments[moments > begin]  # older pictures that come late are no freeze
        edges = np.concatenate(([begin], moments, [self.now_ns])) / MS
        gaps = np.diff(edges)
        stalls = gaps[gaps > STALL_MS]
        span_s = max(self.now_ns / SECOND - warm_up_s, 1e-3)
        row = self.state.call[0]
        missed = np.sum(ripe["fate"] != DECODED) if len(ripe) else 0
        return CallOutcome(
            ssim_db=ssim_db(float(shown["quality"].mean())),
            psnr_db=float(shown["psnr"].mean()),
            p95_delay_ms=float(np.percentile(delays, 95)),
            mean_delay_ms=float(delays.mean()),
            stalls_per_minute=60.0 * len(stalls) / span_s,
            stall_share=float(stalls.sum()) / 1000.0 / span_s,
            undecoded_share=float(missed / max(len(ripe), 1)),
            sent_mbps=float(row["sent_bytes"]) * 8e3 / max(self.now_ns, 1),
            loss=float(row["num_lost"]) / max(int(row["num_sent"]), 1),
            link_mbps=self.link.rate.mean_bps / 1e6,
        )

    def _first_frame(self) -> NDArray[Any]:
        """The first picture alone; a viewer that never saw it has waited until now."""
        first = self.frames[:1].copy()
        first["t_decode"][first["fate"] != DECODED] = self.now_ns
        return first


def run_call(call: Call, controller: Controller) -> CallOutcome:
    """Run the call to its end under the controller."""
    decision = Decision(call.start_bps)
    while not call.done:
        decision = controller.decide(call.step(decision.rate_bps, decision.probe_bps))
    return call.outcome()


def mean_outcome(outcomes: list[CallOutcome]) -> CallOutcome:
    """The mean of every number."""
    rows = [asdict(outcome) for outcome in outcomes]
    return CallOutcome(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def _fresh(table: RateTable, seconds: float, start_bps: float) -> CallState:
    num_frames = int(seconds * table.fps) + 2
    num_packets = int(MAX_RATE_BPS * seconds / 8 / 300) + 4096
    call = np.zeros(1, CALL)
    row = call[0]
    row["interval"] = int(SECOND / table.fps)
    row["loops"], row["levels"] = table.sizes.shape
    row["survives"], row["spare"], row["carry"] = int(table.survives), table.spare, table.carry
    row["payload"], row["least_packets"], row["header"] = MOST_PAYLOAD, LEAST_PACKETS, _HEADER
    row["pace"], row["pace_floor"] = _PACE, _PACE_FLOOR
    row["rate"] = start_bps
    row["highest_acked"] = row["newest"] = row["key_asked"] = -1
    row["broken"] = 1
    return CallState(
        call=call,
        frames=np.zeros(num_frames, FRAME),
        sent=np.zeros(num_packets, SENT),
        by_number=np.zeros(num_packets, np.int64),
        acks=np.zeros(_MOST_ACKS, ACK),
        num_acks=np.zeros(1, np.int64),
        sizes=table.sizes,
        intra_sizes=table.intra_sizes,
        quality=table.ssim,
        psnr=table.psnr_db,
    )
