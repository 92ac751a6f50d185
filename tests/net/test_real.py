"""Real datagrams over loopback: the same queues and senders, and ECN bits that are set for real."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.interrupting import interrupting

from kdn.clock import ManualClock, SystemClock
from kdn.errors import BadInput
from kdn.net.l4s.node import NodeConfig
from kdn.net.real import Namespaces, Reflector, Router, Sender, namespaces_work, wire
from kdn.net.real.place import Node, Place
from kdn.net.world import (
    CE,
    ECT0,
    ECT1,
    Chooser,
    ChooserAnswer,
    ChooserQuestion,
    Flow,
    Hop,
    Queue,
    RateTrace,
    Scenario,
    bulk,
    constant,
    steady,
)
from kdn.net.world.records import LOG, MS, SECOND

HOST = "127.0.0.1"


def test_a_datagram_is_read_as_it_was_written() -> None:
    said = wire.Datagram(False, 7, 1 << 40, ECT1, ECT0)
    data = wire.write(said, 400)
    assert len(data) == 400
    assert wire.read(data) == said
    assert wire.read(wire.remark(data, CE)).ecn == CE
    assert wire.read(wire.remark(data, CE)).sent_ecn == ECT1


def test_foreign_bytes_are_refused() -> None:
    for data in (b"", b"\x00\x01", b"GET / HTTP/1.1\r\n"):
        with pytest.raises(BadInput, match="not one of ours"):
            wire.read(data)


def test_ecn_bits_cross_a_real_socket() -> None:
    with wire.open_socket(HOST) as here, wire.open_socket(HOST) as there:
        for ecn in (0, ECT1, ECT0, CE):
            assert wire.send(here, b"x", there.getsockname(), ecn)
        seen = [wire.receive(there) for _ in range(4)]
        assert [found[1] for found in seen if found is not None] == [0, ECT1, ECT0, CE]
        assert wire.receive(there) is None


@contextmanager
def network(hop: Hop) -> Iterator[tuple[Router, Reflector]]:
    """A router and a reflector, each stepping on a thread until the block ends."""
    with ExitStack() as stack:
        front, back, far = (stack.enter_context(wire.open_socket(HOST)) for _ in range(3))
        router = Router(hop, front, back, far.getsockname(), SystemClock())
        reflector = Reflector(far)
        over = threading.Event()

        def turn(step: object) -> None:
            while not over.is_set():
                step()  # type: ignore[operator]

        threads = [threading.Thread(target=turn, args=(one.step,)) for one in (router, reflector)]
        for thread in threads:
            thread.start()
        try:
            yield router, reflector
        finally:
            over.set()
            for thread in threads:
                thread.join()


def send(hop: Hop, flows: tuple[Flow, ...], seconds: float) -> tuple[Sender, Router, Reflector]:
    with network(hop) as (router, reflector), wire.open_socket(HOST) as udp:
        address = router._front.getsockname()
        scenario = Scenario("real", (hop,), flows)
        sender = Sender(scenario, udp, address, SystemClock(), {})
        sender.run(seconds)
        router.check()
        return sender, router, reflector


@pytest.mark.alone
def test_packets_arrive_through_the_router_with_their_delay() -> None:
    hop = Hop(constant(20e6), delay_ms=5.0)
    flow = Flow("unresponsive", "ect1", steady(2.0, 1000), packet=1000, logged=True)
    sender, _, reflector = send(hop, (flow,), 1.0)
    log = sender.log()
    assert len(log) > 100
    assert float(np.min(log["t_ack"] - log["t_send"])) > 5.0 * MS
    assert set(log["sent_ecn"]) == {ECT1}
    assert reflector.bleached == 0


@pytest.mark.alone
def test_a_flood_is_held_to_the_links_rate_and_marked() -> None:
    hop = Hop(constant(8e6), Queue(limit_ms=50.0))
    flow = Flow("unresponsive", "ect1", steady(16.0, 1000), packet=1000, logged=True)
    sender, router, _ = send(hop, (flow,), 1.5)
    log = sender.log()
    mbps = float(log["size"].sum()) * 8e-6 / 1.5
    assert mbps < 8.8
    assert router.marked[0] > 50
    assert (log["ecn"] == CE).sum() > 50


@pytest.mark.alone
def test_prague_keeps_the_queue_short_over_real_sockets() -> None:
    hop = Hop(constant(10e6), delay_ms=5.0)
    flow = Flow("prague", "ect1", bulk(), packet=1200, logged=True)
    sender, _, _ = send(hop, (flow,), 2.5)
    log = sender.log()
    waited = np.percentile(log["t_ack"] - log["t_send"], 50) / MS - 5.0
    assert waited < 60.0  # a loaded machine adds its own; an unmarked flow would reach 250
    assert len(log) > 200


def test_a_recorded_link_begins_with_the_first_data() -> None:
    """12 Mbit/s in the first second and 120 after it; 10 s pass first. 1,500 bytes take 1 ms, not 0.1."""
    trace = RateTrace(np.array([0, SECOND]), np.array([12e6, 120e6]), 1000 * SECOND)
    clock = ManualClock()
    with ExitStack() as stack:
        sender, front, back, far = (stack.enter_context(wire.open_socket(HOST)) for _ in range(4))
        router = Router(Hop(trace), front, back, far.getsockname(), clock)
        clock.advance(5.0)
        router.step()
        clock.advance(5.0)
        data = wire.write(wire.Datagram(False, 0, 0, ECT1, ECT1), 1500)
        wire.send(sender, data, front.getsockname(), ECT1)
        router.step()
        arrived = []
        for _ in range(2):
            clock.advance(0.0006)
            router.step()
            arrived.append(router.forwarded)
    assert arrived == [0, 1]


class _Ticking(ManualClock):
    """Time passes only by being read: 0.1 ms each."""

    def now(self) -> float:
        self.advance(1e-4)
        return super().now()


def ticking_run(flow: Flow, seconds: float, make: Callable[[_Ticking, Far], Chooser]) -> Sender:
    """The flow over a socket, in time that ticks; who it asks may move the clock and answer packets."""
    with wire.open_socket(HOST) as udp, wire.open_socket(HOST) as there:
        clock, scenario = _Ticking(), Scenario("real", (Hop(constant(1e9)),), (flow,))
        choosers = {0: make(clock, Far(there))}
        sender = Sender(scenario, udp, there.getsockname(), clock, choosers)
        sender.run(seconds)
    return sender


class Far:
    """The other end of a path: takes data in, and gives feedback when it is told to."""

    def __init__(self, udp: socket.socket) -> None:
        self._udp = udp
        self._from: tuple[str, int] | None = None

    def take_in(self) -> list[wire.Datagram]:
        taken = []
        while (found := wire.receive(self._udp)) is not None:
            self._from = found[2]
            taken.append(wire.read(found[0]))
        return taken

    def answer(self, data: wire.Datagram) -> None:
        assert self._from is not None
        said = wire.Datagram(True, data.flow, data.seq, data.sent_ecn, data.ecn)
        wire.send(self._udp, wire.write(said), self._from, 0)


@dataclass
class Slow:
    """Takes 2 ms to decide, twice as long as a decision holds, and notes when it was asked."""

    clock: ManualClock
    far: Far
    asked_ns: list[int]

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        self.asked_ns.append(question.now_ns)
        self.clock.advance(0.002)
        for data in self.far.take_in():
            self.far.answer(data)
        return ChooserAnswer(ECT1)


def test_a_decision_that_takes_longer_than_it_holds_sends_its_packet() -> None:
    """A packet each 10 ms: one question each, and the row says when the packet could have gone."""
    asked: list[int] = []
    flow = Flow("unresponsive", "ect1", steady(0.8, 1000), packet=1000, marking="ask")
    sender = ticking_run(flow, 0.2, lambda clock, far: Slow(clock, far, asked))
    assert sender.decisions == int(sender.flows[0]["sent"]) == 20
    log = sender.log()
    assert log["t_ready"].tolist() == asked[: len(log)]
    assert len(log) >= 18
    assert set(log["t_send"] - log["t_ready"] > 2 * MS) == {True}


class Withholding:
    """Gives feedback of all packets but the first; of that one once it has been given up."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.first: wire.Datagram | None = None
        self.told: list[int] = []

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        self.told += question.acks["seq"].tolist()
        for data in self.far.take_in():
            if data.seq == 0:
                self.first = data
            else:
                self.far.answer(data)
        if self.first is not None and question.now_ns > 150 * MS:
            self.far.answer(self.first)
            self.first = None
        return ChooserAnswer(ECT0)


def test_feedback_of_a_packet_that_was_given_up_is_logged_and_told() -> None:
    """The slowest packets of the classic queue are among those that later ones overtook."""
    made: list[Withholding] = []

    def withholding(clock: ManualClock, far: Far) -> Withholding:
        made.append(Withholding(far))
        return made[0]

    flow = Flow("prague", "ect1", steady(4.0, 1000), packet=1000, marking="ask")
    sender = ticking_run(flow, 0.2, withholding)
    row = sender.flows[0]
    assert (int(row["lost"]), int(row["spurious"])) == (1, 1)
    log = sender.log()
    (late,) = log[log["seq"] == 0]
    assert late["t_ack"] - late["t_send"] > 140 * MS
    assert late["size"] == 1000
    assert late["sent_ecn"] == ECT0
    assert made[0].told.count(0) == 1
    assert int(row["acked_bytes"]) == int(log["size"].sum()) - 1000


def test_a_run_from_which_nothing_came_back_is_one_sentence() -> None:
    """Two packets, after 0.5 and 1.5 s: the second is judged, and 3 of its 13 ms are above the path."""
    from kdn.net.l4s.lab import delays_ms

    log = np.zeros(2, LOG)
    log["t_send"] = [500 * MS, 1500 * MS]
    log["t_ack"] = log["t_send"] + 13 * MS
    assert delays_ms(log, 10.0).tolist() == [3.0]
    with pytest.raises(BadInput, match="came back, and 1 before"):
        delays_ms(log[:1], 10.0)


@pytest.mark.skipif(not namespaces_work(), reason="needs root and iproute2 for namespaces")
def test_namespaces_come_and_go() -> None:
    from kdn.net.l4s.lab import open_place, run_real

    with open_place() as place:
        assert place.name == "namespaces"
        found = run_real(place, "all-L", 2.0, "floor")
    assert len(found.delays_ms) > 100
    assert found.reflector["bleached"] == 0
    assert found.router["cpu_s"] > 0.0
    with Namespaces() as spaces:
        assert spaces.inside("router")[:3] == ["ip", "netns", "exec"]


@pytest.mark.alone
def test_a_real_flow_learns_while_it_sends() -> None:
    """Two seconds through the router on loopback: steps are taken, kept or undone, and end."""
    from kdn.net.l4s.lab import open_place, run_real

    with open_place(loopback=True) as place:
        found = run_real(place, "swift-online", 3.0, "floor")
    assert sum(found.sent["tuned"]) >= 1
    assert len(found.delays_ms) > 100


@dataclass(frozen=True)
class Interrupting(Place):
    """Where a process stops the one that waits for it."""

    file: Path

    def command(self, role: str) -> list[str]:
        return [*interrupting(self.file), role]


def test_a_stop_while_a_process_starts_ends_that_process(tmp_path: Path) -> None:
    place = Interrupting("here", None, tmp_path / "number")
    with pytest.raises(KeyboardInterrupt):
        Node(place, "nothing", "router", NodeConfig("router", HOST))
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.file.read_text()), 0)
