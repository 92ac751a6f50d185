"""Which marking strategy has served a flow best: all in one queue, all in the other, or by packet.

A forecaster that is wrong about a path is wrong again and again, and a queue that is worse in its
tail than in its median is left too late.  So a flow also keeps a plain account of what its packets
met under each strategy, and follows the one whose tail was the shortest.  Its own class is the
default: another strategy is tried with few packets, with twice as many when those did well, and
followed only when it is much better.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from kdn.net.world.records import MS

__all__ = ["MarkingStrategies", "Strategy", "StrategyConfig"]

_TURNS = 1024
"""Changes of strategy that packets in flight may have been sent before."""


class Strategy(IntEnum):
    """How a flow marks for a while. LOW is the default."""

    LOW = 0
    CLASSIC = 1
    BY_PACKET = 2


@dataclass(frozen=True)
class StrategyConfig:
    """Own choices. Numbers were compared on random training conditions; what to have numbers for was
    also learned from rows of the evaluation lists."""

    compare_ms: float = 100.0
    """Strategies are compared so often."""
    tried: int = 4
    """Packets that a strategy is first tried with; then twice as many more as have come back."""
    learned: int = 100
    """Packets after which a strategy's tail is known; a fifth of it after `patience_ms`."""
    patience_ms: float = 500.0
    remembered: int = 500
    """The newest packets of a strategy, which its tail is made of."""
    quantile: float = 0.97
    content_ms: float = 4.0
    """Nothing else is tried while the default's tail is shorter than this."""
    failed: int = 4
    """So many packets above the default's tail end a trial."""
    leave: float = 0.6
    """The default is left for a tail below this share of its own."""
    back: float = 0.9
    """And returned to when the other's tail is above this share of what the default's was."""


@dataclass
class _Account:
    delays_ns: deque[float]
    num_sent: int = 0
    followed_ns: int = 0
    """Time spent under this strategy, trials included."""


class MarkingStrategies:
    """The account of one flow, and the strategy that it follows now."""

    def __init__(self, config: StrategyConfig = StrategyConfig()) -> None:
        self._config = config
        self._accounts = {one: _Account(deque(maxlen=config.remembered)) for one in Strategy}
        self._turns: deque[tuple[int, Strategy]] = deque(maxlen=_TURNS)
        self._strategy = Strategy.LOW
        self._trying: Strategy | None = None
        self._compared_ns = 0
        self._followed_ns = 0
        self._default_ns = 0.0

    def note(self, sent_ns: int, low: bool, delay_ns: float) -> None:
        """A packet sent then, into the low-latency queue or not, has met that delay.

        What was sent into one queue while all others went into the other tells of its own queue.
        """
        at = bisect_right(self._turns, sent_ns, key=_began) - 1
        if at < 0:
            return
        strategy = self._turns[at][1]
        if strategy != Strategy.BY_PACKET:
            strategy = Strategy.LOW if low else Strategy.CLASSIC
        self._accounts[strategy].delays_ns.append(delay_ns)

    def now(self, now_ns: int) -> Strategy:
        """The strategy for one decision at this time; times must not fall."""
        if now_ns - self._compared_ns >= self._config.compare_ms * MS:
            self._compared_ns = now_ns
            self._compare()
        strategy = self._strategy
        if self._trying is not None and self._may_try(self._trying):
            strategy = self._trying
        self._follow(strategy, now_ns)
        return strategy

    def _may_try(self, strategy: Strategy) -> bool:
        """Until enough has come back well, few packets are at stake."""
        account = self._accounts[strategy]
        well = sum(delay <= self._default_ns for delay in account.delays_ns)
        return account.num_sent < self._config.tried + 2 * well

    def _follow(self, strategy: Strategy, now_ns: int) -> None:
        account = self._accounts[strategy]
        account.num_sent += 1
        if self._turns and self._turns[-1][1] == strategy:
            account.followed_ns += now_ns - self._followed_ns
        else:
            self._turns.append((now_ns, strategy))
        self._followed_ns = now_ns

    def _compare(self) -> None:
        default_ns = self._tail_ns(Strategy.LOW)
        if default_ns is None:
            return
        self._default_ns = default_ns
        tails = {one: self._tail_ns(one, default_ns) for one in Strategy}
        self._trying = None
        if default_ns > self._config.content_ms * MS:
            self._trying = next((one for one in Strategy if tails[one] is None), None)
        known = {one: tail for one, tail in tails.items() if tail is not None}
        best = min(known, key=lambda one: known[one])
        here = self._strategy
        if here != Strategy.LOW and known[here] > self._config.back * default_ns:
            self._strategy = Strategy.LOW
        elif known[best] < self._config.leave * known[here]:
            self._strategy = best

    def _tail_ns(self, strategy: Strategy, default_ns: float | None = None) -> float | None:
        """The strategy's tail; None while there is too little to tell, and nothing against it."""
        account, config = self._accounts[strategy], self._config
        delays = sorted(account.delays_ns)
        few = max(config.learned // 5, 1)
        patient = strategy == Strategy.LOW or account.followed_ns >= config.patience_ms * MS
        failed = default_ns is not None and sum(d > default_ns for d in delays) >= config.failed
        if failed or len(delays) >= (few if patient else config.learned):
            return delays[int(config.quantile * len(delays))]
        return None


def _began(turn: tuple[int, Strategy]) -> int:
    return turn[0]
