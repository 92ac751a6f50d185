"""Real flows: the simulator's senders, given real time and real datagrams."""

from __future__ import annotations

import select
import socket
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdn.clock import Clock
from kdn.errors import BadInput
from kdn.net.real import wire
from kdn.net.world.bare import (
    MUST_ASK,
    MUST_WAIT,
    book_packet,
    check_timer,
    late_feedback,
    packet_acked,
    readiness,
)
from kdn.net.world.build import build
from kdn.net.world.records import APP_GREEDY, LOG, MS, NIL, SECOND, copied
from kdn.net.world.sender import feed_app
from kdn.net.world.spec import Scenario
from kdn.net.world.world import Chooser, ChooserAnswer, ChooserQuestion

__all__ = ["Sender"]

_TIMER_NS = 5 * MS
_BURST = 16


class _Sent(NamedTuple):
    """What was sent. Its row of PACKET is another packet's once it was given up."""

    packet: int
    size: int
    ecn: int
    t_ready: int
    t_send: int
    inflight: int


class Sender:
    """Runs a scenario's flows over one socket; the scenario's hops are not looked at."""

    def __init__(
        self,
        scenario: Scenario,
        udp: socket.socket,
        router: tuple[str, int],
        clock: Clock,
        choosers: dict[int, Chooser],
    ) -> None:
        self._state = build(scenario, num_packets=1 << 15, num_log=1)
        self._udp, self._router, self._clock = udp, router, clock
        self._choosers = choosers
        self._flows = range(len(scenario.flows))
        self._app_at = [int(flow.start_s * SECOND) for flow in scenario.flows]
        self._unheard: dict[tuple[int, int], _Sent] = {}
        """By flow and number, those that were given up too: feedback of them may come yet."""
        self._rows: list[tuple[int, ...]] = []
        self._fresh: dict[int, list[tuple[int, ...]]] = {flow: [] for flow in choosers}
        self._next_timer = 0
        self._deciding_s = 0.0
        self.decisions = 0
        self._zero = 0.0
        self._warm()

    def run(self, seconds: float) -> None:
        """Send for so long."""
        self._zero = self._clock.now()
        end = int(seconds * SECOND)
        while (now := self._now()) < end:
            self._applications(now)
            for flow in self._flows:
                self._send_some(flow)
            self._timers(now)
            wait_s = max(min((self._due() - self._now()) / SECOND, 0.005), 0.0)
            ready, _, _ = select.select([self._udp], [], [], wait_s)
            if ready:
                self._hear()

    @property
    def flows(self) -> Any:
        """The FLOW rows."""
        return self._state.flows

    @property
    def decision_us(self) -> float:
        """Mean time a decision took."""
        return self._deciding_s / max(self.decisions, 1) * 1e6

    def log(self) -> NDArray[Any]:
        """A LOG row per ACK, in order of arrival, of packets that were given up too."""
        return np.array(self._rows, LOG)

    def _warm(self) -> None:
        """Call every compiled rule once, so that none is compiled in the middle of a run."""
        state = self._state
        spare = copied(state)
        spare.flows["app_bytes"] = APP_GREEDY
        for flow in self._flows:
            now = int(spare.flows[flow]["start"])
            readiness(spare, flow, now)
            packet_acked(spare, book_packet(spare, flow, now), True, now + 10 * MS)
            check_timer(spare, flow, 20 * MS)
            late_feedback(spare.flows[flow], 0)
        feed_app(spare.clock, spare.flows[0], 0)

    def _now(self) -> int:
        return int((self._clock.now() - self._zero) * SECOND)

    def _due(self) -> int:
        """When something must be done next, feedback aside."""
        flows = self._state.flows
        due = min(self._next_timer, *self._app_at)
        waiting = (flows["app_bytes"] >= flows["size"]) & (flows["inflight"] < flows["cwnd"])
        if waiting.any():
            due = min(due, int(flows["next_send"][waiting].min()))
        return due

    def _applications(self, now: int) -> None:
        for flow in self._flows:
            row = self._state.flows[flow]
            while now >= self._app_at[flow]:
                if row["chunk"] == 0.0:
                    self._app_at[flow] = 1 << 62
                else:
                    self._app_at[flow] = feed_app(self._state.clock, row, self._app_at[flow])

    def _send_some(self, flow: int) -> None:
        if self._now() < int(self._state.flows[flow]["start"]):
            return
        for _ in range(_BURST):
            ready = readiness(self._state, flow, self._now())
            if ready == MUST_WAIT:
                return
            if ready == MUST_ASK:
                self._decide(flow)
                continue
            packet = book_packet(self._state, flow, self._now())
            if packet == NIL:
                return
            p = self._state.packets[packet]
            seq, ecn, size = int(p["seq"]), int(p["sent_ecn"]), int(p["size"])
            times = int(p["t_ready"]), int(p["t_send"])
            self._unheard[flow, seq] = _Sent(packet, size, ecn, *times, int(p["inflight"]))
            data = wire.write(wire.Datagram(False, flow, seq, ecn, ecn), size)
            wire.send(self._udp, data, self._router, ecn)

    def _decide(self, flow: int) -> None:
        row = self._state.flows[flow]
        start = self._clock.now()
        question = ChooserQuestion(
            flow=flow,
            now_ns=self._now(),
            acks=np.array(self._fresh[flow], LOG),
            inflight=int(row["inflight"]),
            mark=int(row["mark"]),
            size=int(row["size"]),
            srtt_ns=float(row["srtt"]),
        )
        self._fresh[flow] = []
        answer: ChooserAnswer = self._choosers[flow].choose(question)
        if row["mark"] != answer.mark:
            row["switches"] += 1
        row["mark"], row["decided"], row["answered"] = answer.mark, question.now_ns, 1
        row["probe"] = int(answer.probe)
        self.decisions += 1
        self._deciding_s += self._clock.now() - start

    def _hear(self) -> None:
        for _ in range(4 * _BURST):
            found = wire.receive(self._udp)
            if found is None:
                return
            try:
                said = wire.read(found[0])
            except BadInput:
                continue
            sent = self._unheard.pop((said.flow, said.seq), None)
            if sent is not None:
                self._acknowledge(said, sent)

    def _acknowledge(self, said: wire.Datagram, sent: _Sent) -> None:
        now = self._now()
        what = (said.flow, said.seq, sent.size, sent.ecn, said.ecn)
        row = (*what, sent.t_ready, sent.t_send, now, now, sent.inflight)
        self._rows.append(row)
        if said.flow in self._fresh:
            self._fresh[said.flow].append(row)
        p = self._state.packets[sent.packet]
        holds = int(p["flow"]), int(p["seq"])  # another packet, perhaps, once this one was given up
        if int(p["outstanding"]) == 1 and holds == (said.flow, said.seq):
            packet_acked(self._state, sent.packet, said.ecn == 3, now)
        else:
            late_feedback(self._state.flows[said.flow], said.seq)

    def _timers(self, now: int) -> None:
        if now < self._next_timer:
            return
        self._next_timer = now + _TIMER_NS
        for flow in self._flows:
            check_timer(self._state, flow, now)
