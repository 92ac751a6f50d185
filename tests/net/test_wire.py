"""Datagrams of the real path: round trips, what is refused, and the reflector over loopback."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import SystemClock
from kdn.errors import BadInput
from kdn.net.real import Reflector, Router, wire
from kdn.net.world import CE, ECT0, ECT1, Hop, constant

HOST = "127.0.0.1"

datagrams = st.builds(
    wire.Datagram,
    st.booleans(),
    st.integers(0, (1 << 16) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 3),
    st.integers(0, 3),
)


@given(datagrams, st.integers(0, 1500), st.integers(0, 3))
def test_any_datagram_is_read_as_it_was_written(said: wire.Datagram, size: int, mark: int) -> None:
    data = wire.write(said, size)
    assert len(data) == max(size, wire.HEADER_BYTES)
    assert wire.read(data) == said
    marked = wire.remark(data, mark)
    assert wire.read(marked) == wire.Datagram(
        said.feedback, said.flow, said.seq, said.sent_ecn, mark
    )
    assert wire.remark(marked, said.ecn) == data


@given(st.binary(max_size=40))
def test_foreign_bytes_are_refused_or_mean_what_they_say(data: bytes) -> None:
    """Whatever is taken for ours is written again byte by byte, and its ECN fields are two bits."""
    try:
        said = wire.read(data)
    except BadInput:
        ours = len(data) >= wire.HEADER_BYTES and data[0] < 2 and max(data[11:13]) < 4
        assert not ours
    else:
        assert wire.write(said) == data[: wire.HEADER_BYTES]
        assert max(said.sent_ecn, said.ecn) <= CE


def test_an_ecn_field_of_more_than_two_bits_is_refused() -> None:
    whole = wire.write(wire.Datagram(False, 1, 2, ECT1, ECT1))
    for at in (wire.HEADER_BYTES - 1, wire.HEADER_BYTES - 2):
        with pytest.raises(BadInput, match="not one of ours"):
            wire.read(whole[:at] + b"\x04" + whole[at + 1 :])


def test_the_header_is_laid_out_in_network_order() -> None:
    """Kind 1, flow 0x0102, number 0x0a, sent as 2, arrived as 3."""
    data = wire.write(wire.Datagram(True, 0x0102, 0x0A, ECT0, CE))
    assert data.hex() == "01" + "0102" + "000000000000000a" + "02" + "03"


def test_a_reflector_answers_with_what_arrived_and_counts_what_was_bleached() -> None:
    """Three packets: as marked, with the field wiped on the way, and a foreign one that gets no answer."""
    with wire.open_socket(HOST) as here, wire.open_socket(HOST) as there:
        reflector, to = Reflector(there), there.getsockname()
        assert wire.send(here, wire.write(wire.Datagram(False, 3, 1, ECT1, CE), 900), to, CE)
        assert wire.send(here, b"hello, is anybody there?", to, 0)
        assert wire.send(here, wire.write(wire.Datagram(False, 3, 2, ECT1, ECT1), 900), to, 0)
        while reflector.received < 2:
            reflector.step(wait_s=5.0)
        answers = [wire.receive(here) for _ in range(3)]
        said = [wire.read(found[0]) for found in answers if found is not None]
        assert said == [
            wire.Datagram(True, 3, 1, ECT1, CE),
            wire.Datagram(True, 3, 2, ECT1, 0),
        ]
        assert {len(found[0]) for found in answers if found is not None} == {wire.HEADER_BYTES}
        assert (reflector.received, reflector.bleached) == (2, 1)


def test_a_reflector_with_nothing_to_do_comes_back() -> None:
    with wire.open_socket(HOST) as udp:
        reflector = Reflector(udp)
        reflector.step(wait_s=0.0)
        assert reflector.received == 0


def test_a_router_counts_foreign_packets_and_answers_each_flow_at_its_own_address() -> None:
    """Two senders and a stranger: two packets pass, and each answer finds its sender."""
    with (
        wire.open_socket(HOST) as front,
        wire.open_socket(HOST) as back,
        wire.open_socket(HOST) as far,
        wire.open_socket(HOST) as one,
        wire.open_socket(HOST) as other,
    ):
        router = Router(Hop(constant(100e6)), front, back, far.getsockname(), SystemClock())
        reflector = Reflector(far)
        for flow, udp in ((1, one), (2, other)):
            data = wire.write(wire.Datagram(False, flow, 7, ECT1, ECT1), 200)
            assert wire.send(udp, data, front.getsockname(), ECT1)
        wire.send(one, b"?", front.getsockname(), 0)
        found: dict[int, wire.Datagram] = {}
        while len(found) < 2:
            router.step()
            reflector.step(wait_s=0.001)
            for flow, udp in ((1, one), (2, other)):
                got = wire.receive(udp)
                if got is not None:
                    found[flow] = wire.read(got[0])
        assert found == {flow: wire.Datagram(True, flow, 7, ECT1, ECT1) for flow in (1, 2)}
        assert (router.forwarded, router.foreign) == (2, 1)
        router.check()
