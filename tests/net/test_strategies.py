"""The plain account of what packets met: when another strategy is tried, followed and left again."""

from __future__ import annotations

from collections.abc import Callable

from kdn.net.l4s.strategies import MarkingStrategies, Strategy, StrategyConfig
from kdn.net.world.records import MS


def follow(
    strategies: MarkingStrategies,
    met_ms: Callable[[Strategy, int], float],
    milliseconds: int,
    start: int = 0,
) -> list[Strategy]:
    """A packet a millisecond; what it met is known 20 ms later."""
    followed, flying = [], list[tuple[int, Strategy]]()
    for t in range(start, start + milliseconds):
        while flying and flying[0][0] <= t - 20:
            at, one = flying.pop(0)
            strategies.note(at * MS, one == Strategy.LOW, met_ms(one, at) * MS)
        one = strategies.now(t * MS)
        flying.append((t, one))
        followed.append(one)
    return followed


def test_the_default_is_kept_where_nothing_is_much_better() -> None:
    """Everybody meets 5 ms but for a fifth less by packet: not worth leaving."""
    followed = follow(
        MarkingStrategies(), lambda one, _: 4.0 if one == Strategy.BY_PACKET else 5.0, 3000
    )
    assert set(followed[1500:]) == {Strategy.LOW}


def test_the_way_with_the_much_shorter_tail_is_taken() -> None:
    followed = follow(
        MarkingStrategies(), lambda one, _: 2.0 if one == Strategy.CLASSIC else 9.0, 3000
    )
    assert set(followed[1500:]) == {Strategy.CLASSIC}


def test_tails_decide_not_means() -> None:
    """By packet: 1 ms, but every tenth packet 30. By default always 8."""
    followed = follow(
        MarkingStrategies(),
        lambda w, t: 8.0 if w != Strategy.BY_PACKET else 30.0 - 29.0 * (t % 10 > 0),
        3000,
    )
    assert set(followed[1500:]) == {Strategy.LOW}


def test_a_bad_way_costs_a_handful_of_packets() -> None:
    """Four packets are tried; their delays come back, are all above the default's, and that was it."""
    followed = follow(
        MarkingStrategies(), lambda one, _: 90.0 if one == Strategy.CLASSIC else 5.0, 5000
    )
    assert 4 <= followed.count(Strategy.CLASSIC) <= 16


def test_a_way_that_grows_bad_is_left() -> None:
    strategies = MarkingStrategies()
    follow(strategies, lambda one, _: 2.0 if one == Strategy.CLASSIC else 9.0, 2000)
    followed = follow(
        strategies, lambda one, _: 40.0 if one == Strategy.CLASSIC else 9.0, 1000, start=2000
    )
    assert followed[0] == Strategy.CLASSIC
    assert set(followed[300:]) == {Strategy.LOW}


def test_a_slow_flow_learns_with_patience() -> None:
    """25 packets a second: with patience a fifth of the packets will do."""

    def left_after(patience_ms: float) -> int:
        strategies, n = MarkingStrategies(StrategyConfig(patience_ms=patience_ms)), 0
        while strategies._strategy == Strategy.LOW:
            one, n = strategies.now(n * 40 * MS), n + 1
            strategies.note(
                (n - 1) * 40 * MS,
                one == Strategy.LOW,
                (10.0 if one == Strategy.CLASSIC else 80.0) * MS,
            )
        return n

    assert left_after(500.0) < 80 < left_after(1e9)


def test_a_probe_is_told_of_the_queue_it_went_to() -> None:
    """The default is followed; ten packets sent into the other queue do not lengthen the default's tail."""
    strategies = MarkingStrategies()
    for n in range(200):
        assert strategies.now(n * MS) in {Strategy.LOW, Strategy.CLASSIC, Strategy.BY_PACKET}
        strategies.note(n * MS, True, 5.0 * MS)
    before = strategies._tail_ns(Strategy.LOW)
    for n in range(10):
        strategies.note(50 * MS + n, False, 500.0 * MS)
    assert strategies._tail_ns(Strategy.LOW) == before


def test_a_flow_that_is_content_with_its_default_tries_nothing() -> None:
    """3 ms by default, 1 ms elsewhere: not worth a packet."""
    followed = follow(MarkingStrategies(), lambda one, _: 3.0 if one == Strategy.LOW else 1.0, 2000)
    assert set(followed) == {Strategy.LOW}
