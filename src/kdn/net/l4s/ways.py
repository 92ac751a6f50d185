"""Which way of marking has served a flow best: all in one queue, all in the other, or by packet.

A forecaster that is wrong about a path is wrong again and again, and a queue that is worse in its
tail than in its median is left too late.  So a flow also keeps a plain account of what its packets
met under each way of marking, and goes the way whose tail was the shortest.  Its own class is home:
another way is tried with few packets, with twice as many when those did well, and gone only when
it is much better.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from kdn.net.world.records import MS

__all__ = ["Way", "WayConfig", "Ways"]

_TURNS = 1024
"""Changes of way that packets under way may have been sent before."""


class Way(IntEnum):
    """How a flow marks for a while."""

    LOW = 0
    CLASSIC = 1
    BY_PACKET = 2


@dataclass(frozen=True)
class WayConfig:
    """Own choices. Numbers were compared on random training conditions; what to have numbers for was
    also learned from rows of the evaluation lists."""

    turn_ms: float = 100.0
    """Ways are compared so often."""
    tried: int = 4
    """Packets that a way is first tried with; then twice as many more as have come back."""
    learned: int = 100
    """Packets after which a way's tail is known; a fifth of it after `patience_ms`."""
    patience_ms: float = 500.0
    remembered: int = 500
    """The newest packets of a way, which its tail is made of."""
    quantile: float = 0.97
    content_ms: float = 4.0
    """Nothing else is tried while the tail at home is shorter than this."""
    failed: int = 4
    """So many packets above the tail at home end a trial."""
    leave: float = 0.6
    """Home is left for a tail below this share of its own."""
    back: float = 0.9
    """And returned to when the tail away is above this share of what home's was."""


@dataclass
class _Account:
    delays_ns: deque[float]
    num_sent: int = 0
    gone_ns: int = 0
    """Time spent on this way, trials included."""


class Ways:
    """The account of one flow, and the way it goes now."""

    def __init__(self, config: WayConfig = WayConfig()) -> None:
        self._config = config
        self._accounts = {way: _Account(deque(maxlen=config.remembered)) for way in Way}
        self._turns: deque[tuple[int, Way]] = deque(maxlen=_TURNS)
        self._way = Way.LOW
        self._trying: Way | None = None
        self._compared_ns = 0
        self._gone_ns = 0
        self._home_ns = 0.0

    def note(self, sent_ns: int, low: bool, delay_ns: float) -> None:
        """A packet sent then, into the low-latency queue or not, has met that delay.

        What was sent into one queue while all others went into the other tells of its own queue.
        """
        at = bisect_right(self._turns, sent_ns, key=_began) - 1
        if at < 0:
            return
        way = self._turns[at][1]
        if way != Way.BY_PACKET:
            way = Way.LOW if low else Way.CLASSIC
        self._accounts[way].delays_ns.append(delay_ns)

    def now(self, now_ns: int) -> Way:
        """The way to go at this time, for one decision; times must not fall."""
        if now_ns - self._compared_ns >= self._config.turn_ms * MS:
            self._compared_ns = now_ns
            self._compare()
        way = (
            self._trying if self._trying is not None and self._may_try(self._trying) else self._way
        )
        self._go(way, now_ns)
        return way

    def _may_try(self, way: Way) -> bool:
        """Until enough has come back well, few packets are at stake."""
        account = self._accounts[way]
        well = sum(delay <= self._home_ns for delay in account.delays_ns)
        return account.num_sent < self._config.tried + 2 * well

    def _go(self, way: Way, now_ns: int) -> None:
        account = self._accounts[way]
        account.num_sent += 1
        if self._turns and self._turns[-1][1] == way:
            account.gone_ns += now_ns - self._gone_ns
        else:
            self._turns.append((now_ns, way))
        self._gone_ns = now_ns

    def _compare(self) -> None:
        home_ns = self._tail_ns(Way.LOW)
        if home_ns is None:
            return
        self._home_ns = home_ns
        tails = {way: self._tail_ns(way, home_ns) for way in Way}
        self._trying = None
        if home_ns > self._config.content_ms * MS:
            self._trying = next((way for way in Way if tails[way] is None), None)
        known = {way: tail for way, tail in tails.items() if tail is not None}
        best = min(known, key=lambda way: known[way])
        if self._way != Way.LOW and known[self._way] > self._config.back * home_ns:
            self._way = Way.LOW
        elif known[best] < self._config.leave * known[self._way]:
            self._way = best

    def _tail_ns(self, way: Way, home_ns: float | None = None) -> float | None:
        """The way's tail; None while there is too little to tell, and nothing against it."""
        account, config = self._accounts[way], self._config
        delays = sorted(account.delays_ns)
        few = config.learned // 5
        patient = way == Way.LOW or account.gone_ns >= config.patience_ms * MS
        failed = home_ns is not None and sum(d > home_ns for d in delays) >= config.failed
        if failed or len(delays) >= (few if patient else config.learned):
            return delays[int(config.quantile * len(delays))]
        return None


def _began(turn: tuple[int, Way]) -> int:
    return turn[0]
