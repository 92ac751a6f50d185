"""A call over real sockets on loopback, through the user-space router."""

from __future__ import annotations

import threading

import pytest
from tests.net.rtc.clip import codec, moving

from kdn.clock import SystemClock
from kdn.net.real.namespaces import namespaces_work
from kdn.net.real.place import open_place
from kdn.net.real.router import Router
from kdn.net.real.wire import open_socket
from kdn.net.rtc.call import Decision, Link
from kdn.net.rtc.over_udp import call_over_udp
from kdn.net.rtc.real_call import blind_table
from kdn.net.rtc.rows import DECODED
from kdn.net.rtc.udp import UdpCall, Viewer, fingerprint
from kdn.net.world import Hop, Queue, constant

pytestmark = pytest.mark.timeout(600)
"""A call ends after four minutes at the latest, whatever was shown by then."""


@pytest.mark.slow
@pytest.mark.alone
def test_what_the_viewer_shows_is_what_the_sender_believes() -> None:
    """A router of 1 Mbit/s, until 12 pictures are shown: those that both know are equal byte for byte."""
    clock = SystemClock()
    sender, front, back, receiver = (open_socket("127.0.0.1") for _ in range(4))
    hop = Hop(constant(1e6), Queue("droptail", limit_ms=300.0), delay_ms=10.0)
    router = Router(hop, front, back, receiver.getsockname(), clock)
    viewer = Viewer(receiver, codec(), clock)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            router.step()

    def watch() -> None:
        while not over.is_set():
            viewer.step()

    link = Link("loopback", constant(1e6), 10.0)
    call = UdpCall(
        blind_table(15.0, codec()),
        link,
        240.0,
        clip=moving(),
        codec=codec(),
        udp=sender,
        to=front.getsockname(),
        clock=clock,
    )
    threads = [threading.Thread(target=target, daemon=True) for target in (serve, watch)]
    for thread in threads:
        thread.start()
    call.begin()
    decision = Decision(300e3)
    while len(call.shown) < 12 and not call.done:
        call.step(decision.rate_bps)
    over.set()
    for thread in threads:
        thread.join()
    for udp in (sender, front, back, receiver):
        udp.close()
    believed = {call.coded_number(number): picture for number, picture in call.shown.items()}
    both = [seen for seen in viewer.seen if seen.number in believed]
    assert len(both) >= 10
    assert all(fingerprint(believed[seen.number]) == seen.checksum for seen in both)
    assert (call.frames["fate"] == DECODED).sum() >= 10
    assert viewer.refused == 0


def until_shown(call: UdpCall) -> None:
    """Step the call until eight pictures are shown, at most for its length."""
    while len(call.shown) < 8 and not call.done:
        call.step(300e3)


@pytest.mark.slow
@pytest.mark.parametrize("codec_name", ["masked", "h264+fec30"])
def test_three_processes_on_loopback_agree(codec_name: str) -> None:
    link = Link("loopback", constant(1e6), 10.0, loss=0.05)
    with open_place(loopback=True) as place:
        done = call_over_udp(place, link, moving(), codec_name, 240.0, until_shown)
    assert done.compared >= 6  # the newest may not have been decoded when the viewer ended
    assert done.same == done.compared
    assert min(done.shown_ms) > 10.0
    assert done.refused == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_work(), reason="needs root and iproute2 for namespaces")
def test_a_call_crosses_namespaces() -> None:
    link = Link("namespaces", constant(1e6), 10.0)
    with open_place() as place:
        assert place.name == "namespaces"
        done = call_over_udp(place, link, moving(), "h264+fec30", 240.0, until_shown)
    assert done.compared >= 6
    assert done.same == done.compared
    assert done.lost == 0
