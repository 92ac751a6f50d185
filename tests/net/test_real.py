"""Real datagrams over loopback: the same queues and senders, and ECN bits that are set for real."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.interrupting import interrupting

from kdn.clock import SystemClock
from kdn.errors import BadInput
from kdn.net.l4s.node import NodeConfig
from kdn.net.real import Namespaces, Reflector, Router, Sender, namespaces_work, wire
from kdn.net.real.place import Node, Place
from kdn.net.world import CE, ECT0, ECT1, Flow, Hop, Queue, Scenario, bulk, constant, steady
from kdn.net.world.records import MS

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
