"""The plain account of what packets met: when another way is tried, gone and left again."""

from __future__ import annotations

from collections.abc import Callable

from kdn.net.l4s.ways import Way, WayConfig, Ways
from kdn.net.world.records import MS


def travel(
    ways: Ways, met_ms: Callable[[Way, int], float], milliseconds: int, start: int = 0
) -> list[Way]:
    """A packet a millisecond; what it met is known 20 ms later."""
    gone, flying = [], list[tuple[int, Way]]()
    for t in range(start, start + milliseconds):
        while flying and flying[0][0] <= t - 20:
            at, way = flying.pop(0)
            ways.note(at * MS, way == Way.LOW, met_ms(way, at) * MS)
        way = ways.now(t * MS)
        flying.append((t, way))
        gone.append(way)
    return gone


def test_home_is_kept_where_nothing_is_much_better() -> None:
    """Everybody meets 5 ms but for a fifth less by packet: not worth leaving."""
    gone = travel(Ways(), lambda way, _: 4.0 if way == Way.BY_PACKET else 5.0, 3000)
    assert set(gone[1500:]) == {Way.LOW}


def test_the_way_with_the_much_shorter_tail_is_taken() -> None:
    gone = travel(Ways(), lambda way, _: 2.0 if way == Way.CLASSIC else 9.0, 3000)
    assert set(gone[1500:]) == {Way.CLASSIC}


def test_tails_decide_not_means() -> None:
    """By packet: 1 ms, but every tenth packet 30. At home always 8."""
    gone = travel(
        Ways(), lambda w, t: 8.0 if w != Way.BY_PACKET else 30.0 - 29.0 * (t % 10 > 0), 3000
    )
    assert set(gone[1500:]) == {Way.LOW}


def test_a_bad_way_costs_a_handful_of_packets() -> None:
    """Four packets are tried; their delays come back, are all above home's, and that was it."""
    gone = travel(Ways(), lambda way, _: 90.0 if way == Way.CLASSIC else 5.0, 5000)
    assert 4 <= gone.count(Way.CLASSIC) <= 16


def test_a_way_that_grows_bad_is_left() -> None:
    ways = Ways()
    travel(ways, lambda way, _: 2.0 if way == Way.CLASSIC else 9.0, 2000)
    gone = travel(ways, lambda way, _: 40.0 if way == Way.CLASSIC else 9.0, 1000, start=2000)
    assert gone[0] == Way.CLASSIC
    assert set(gone[300:]) == {Way.LOW}


def test_a_slow_flow_learns_with_patience() -> None:
    """25 packets a second: with patience a fifth of the packets will do."""

    def left_after(patience_ms: float) -> int:
        ways, n = Ways(WayConfig(patience_ms=patience_ms)), 0
        while ways._way == Way.LOW:
            way, n = ways.now(n * 40 * MS), n + 1
            ways.note(
                (n - 1) * 40 * MS, way == Way.LOW, (10.0 if way == Way.CLASSIC else 80.0) * MS
            )
        return n

    assert left_after(500.0) < 80 < left_after(1e9)


def test_a_probe_is_told_of_the_queue_it_went_to() -> None:
    """Home is gone; ten packets sent into the other queue do not lengthen home's tail."""
    ways = Ways()
    for n in range(200):
        assert ways.now(n * MS) in {Way.LOW, Way.CLASSIC, Way.BY_PACKET}
        ways.note(n * MS, True, 5.0 * MS)
    before = ways._tail_ns(Way.LOW)
    for n in range(10):
        ways.note(50 * MS + n, False, 500.0 * MS)
    assert ways._tail_ns(Way.LOW) == before


def test_a_flow_that_is_content_at_home_tries_nothing() -> None:
    """3 ms at home, 1 ms elsewhere: not worth a packet."""
    gone = travel(Ways(), lambda way, _: 3.0 if way == Way.LOW else 1.0, 2000)
    assert set(gone) == {Way.LOW}
