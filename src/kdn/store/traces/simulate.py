"""Hit rate against capacity for every policy, and the optimum that knows the future."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdn.core import BlockKey, Served
from kdn.store.policies import EvictionPolicy, Use, make_policy
from kdn.store.traces.recording import TraceRequest
from kdn.store.traces.replay import replay

__all__ = ["NOTHING", "OPTIMUM", "Belady", "SimulatedRun", "served_by", "simulate", "summarize"]

OPTIMUM = "belady"
NOTHING = "none"
"""A store that keeps nothing."""


@dataclass(frozen=True)
class SimulatedRun:
    """One policy at one capacity over one trace."""

    policy: str
    capacity_bytes: int
    requests: int
    blocks: int
    hit_blocks: int
    tokens: int
    hit_tokens: int
    read_bytes: int
    written_bytes: int

    @property
    def hit_rate(self) -> float:
        """Of the blocks that were asked for, the share that was there."""
        return self.hit_blocks / max(1, self.blocks)


class Belady(EvictionPolicy):
    """Knows the whole trace: what is wanted last, or never, goes first, and what is wanted later
    than all that is here is not let in.

    Belady, A study of replacement algorithms for a virtual-storage computer (IBM Systems Journal,
    1966); the optimum for blocks of one size.  For traces only.
    """

    name = OPTIMUM

    def __init__(self, requests: Iterable[TraceRequest]) -> None:
        self._coming: defaultdict[BlockKey, deque[int]] = defaultdict(deque)
        for number, request in enumerate(requests):
            for name in request.hash_ids:
                self._coming[BlockKey(str(name))].append(number)
        self._here: dict[BlockKey, tuple[int, int]] = {}
        self._latest: list[tuple[int, int, BlockKey]] = []

    def admits(self, use: Use) -> bool:
        coming = self._coming[use.key]
        latest = next(self.victims(use.at_s), None)
        if len(coming) > 1 and (latest is None or coming[1] <= -self._here[latest][0]):
            return True
        coming.popleft()
        return False

    def insert(self, use: Use) -> None:
        self.use(use)

    def use(self, use: Use) -> None:
        coming = self._coming[use.key]
        coming.popleft()
        wanted = coming[0] if coming else 1 << 60
        self._here[use.key] = (-wanted, -use.start)
        heapq.heappush(self._latest, (-wanted, -use.start, use.key))

    def remove(self, key: BlockKey) -> None:
        self._here.pop(key, None)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        while self._latest:
            wanted, start, key = self._latest[0]
            if self._here.get(key) == (wanted, start):
                break
            heapq.heappop(self._latest)
        if self._latest:
            first = self._latest[0][2]
            yield first
            rest = self._latest.copy()
            while rest:
                wanted, start, key = heapq.heappop(rest)
                if key != first and self._here.get(key) == (wanted, start):
                    yield key

    def __len__(self) -> int:
        return len(self._here)


def simulate(
    requests: Sequence[TraceRequest],
    policies: Sequence[str],
    capacities_bytes: Sequence[int],
    token_bytes: int,
    *,
    on_run: Callable[[SimulatedRun], None] | None = None,
) -> list[SimulatedRun]:
    """Every policy (and `belady`) at every capacity. Raises BadInput for an unknown policy."""
    found = []
    for capacity_bytes in capacities_bytes:
        for name in policies:
            served = served_by(name, requests, token_bytes, capacity_bytes)
            found.append(summarize(name, capacity_bytes, served))
            if on_run is not None:
                on_run(found[-1])
    return found


def served_by(
    name: str, requests: Sequence[TraceRequest], token_bytes: int, capacity_bytes: int
) -> list[Served]:
    """What becomes of each request under a policy by name, `belady`, or `none`: no store at all.

    Raises BadInput for an unknown one.
    """
    if name == NOTHING:
        return list(replay(requests, token_bytes, 0, make_policy("fifo")))
    policy = Belady(requests) if name == OPTIMUM else make_policy(name)
    return list(replay(requests, token_bytes, capacity_bytes, policy))


def summarize(policy: str, capacity_bytes: int, served: Iterable[Served]) -> SimulatedRun:
    """Sums over what became of each request."""
    requests = blocks = hit_blocks = tokens = hit_tokens = read_bytes = written_bytes = 0
    for one in served:
        requests += 1
        blocks += one.num_blocks
        hit_blocks += one.hit_blocks
        tokens += one.num_tokens
        hit_tokens += one.hit_tokens
        read_bytes += one.read_bytes
        written_bytes += one.written_bytes
    return SimulatedRun(
        policy, capacity_bytes, requests, blocks, hit_blocks, tokens, hit_tokens, read_bytes,
        written_bytes,
    )  # fmt: skip
