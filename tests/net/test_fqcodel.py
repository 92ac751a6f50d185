"""FQ-CoDel (RFC 8290, RFC 8289): its drop times by hand, and all it does against a plain twin."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.net.world import Hop, Queue, constant
from kdn.net.world.build import empty_hop
from kdn.net.world.packets import release, take
from kdn.net.world.queue import dequeue, enqueue
from kdn.net.world.records import CE, ECT0, MS, NIL, NOT_ECT, SECOND, State

MTU = 1500
TARGET, INTERVAL = 5 * MS, 100 * MS


@dataclass
class PlainQueue:
    """One flow's packets (name, size, ecn, when it came) and its CoDel."""

    waiting: deque[tuple[int, int, int, int]] = field(default_factory=deque)
    deficit: int = 0
    listed: bool = False
    above_since: int | None = None
    dropping: bool = False
    drop_next: int = 0
    count: int = 0
    last_count: int = 0

    @property
    def size(self) -> int:
        return sum(packet[1] for packet in self.waiting)


class PlainFqCodel:
    """RFC 8290 in lists and deques: what the compiled queue must do, packet for packet."""

    def __init__(self, limit: int, flows: int) -> None:
        self.limit = limit
        self.flows = [PlainQueue() for _ in range(flows)]
        self.new: deque[int] = deque()
        self.old: deque[int] = deque()

    def enqueue(self, flow: int, name: int, size: int, ecn: int, now: int) -> None:
        queue = self.flows[flow]
        queue.waiting.append((name, size, ecn, now))
        if not queue.listed:
            queue.listed, queue.deficit = True, MTU
            self.new.append(flow)
        if sum(q.size for q in self.flows) > self.limit:
            max(self.flows, key=lambda q: q.size).waiting.popleft()

    def dequeue(self, now: int) -> tuple[int, bool] | None:
        """(name, marked) of the next packet."""
        while self.new or self.old:
            turn = self.new or self.old
            was_new = turn is self.new
            flow = turn[0]
            queue = self.flows[flow]
            if queue.deficit <= 0:
                queue.deficit += MTU
                self.old.append(turn.popleft())
                continue
            found = self._codel(queue, now)
            if found is None:
                turn.popleft()
                if was_new and self.old:
                    self.old.append(flow)
                else:
                    queue.listed = False
                continue
            name, size, marked = found
            queue.deficit -= size
            return name, marked
        return None

    def _codel(self, queue: PlainQueue, now: int) -> tuple[int, int, bool] | None:
        while queue.waiting:
            name, size, ecn, came = queue.waiting.popleft()
            if now - came < TARGET or queue.size <= MTU:
                queue.above_since = None
                queue.dropping = False
                return name, size, False
            if queue.above_since is None:
                queue.above_since = now + INTERVAL
            if now < queue.above_since:
                queue.dropping = False
                return name, size, False
            if not queue.dropping:
                queue.dropping = True
                delta = queue.count - queue.last_count
                recent = now - queue.drop_next < 16 * INTERVAL
                queue.count = delta if recent and delta > 1 else 1
                queue.last_count = queue.count
                queue.drop_next = now + int(INTERVAL / sqrt(queue.count))
            elif now >= queue.drop_next:
                queue.count += 1
                queue.drop_next += int(INTERVAL / sqrt(queue.count))
            else:
                return name, size, False
            if ecn != NOT_ECT:
                return name, size, True
        queue.dropping = False
        return None


def hop(limit_ms: float = 1000.0, flows: int = 3) -> State:
    return empty_hop(Hop(constant(12e6), Queue("fq_codel", limit_ms=limit_ms)), 4096, flows)


def put(state: State, flow: int, size: int, ecn: int, now: int) -> int:
    packet = take(state)
    row = state.packets[packet]
    row["flow"], row["size"], row["ecn"], row["sent_ecn"] = flow, size, ecn, ecn
    row["outstanding"], row["travelling"] = 0, 1
    enqueue(state, 0, packet, now)
    return int(packet)


def test_a_standing_queue_is_dropped_from_after_100_then_100_then_71_then_58_ms() -> None:
    """A packet a millisecond, all 10 ms old: INTERVAL / sqrt(count) between drops (RFC 8289, 3.3)."""
    state = hop()
    drops, dropped = [], 0
    for ms in range(500):
        put(state, 0, MTU, NOT_ECT, (ms + 1) * MS)
        put(state, 0, MTU, NOT_ECT, (ms + 1) * MS)
        found = dequeue(state, 0, (ms + 11) * MS)
        state.packets[found]["travelling"] = 0
        release(state, found)
        if int(state.hops[0]["dropped"]) > dropped:
            dropped = int(state.hops[0]["dropped"])
            drops.append(ms)
    gaps = [b - a for a, b in pairwise(drops)]
    assert drops[0] == 101  # the queue stands above one packet from the second round on
    assert gaps[:4] == pytest.approx([100, 71, 58, 50], abs=1)


def test_what_can_be_marked_is_marked_instead() -> None:
    state = hop()
    marked = 0
    for ms in range(150):
        put(state, 0, MTU, ECT0, ms * MS)
        put(state, 0, MTU, ECT0, ms * MS)
        found = dequeue(state, 0, (ms + 10) * MS)
        marked += int(state.packets[found]["ecn"]) == CE
    assert marked == 1
    assert int(state.hops[0]["dropped"]) == 0


def test_a_new_flow_goes_before_those_that_have_had_their_quantum() -> None:
    """RFC 8290, 4.2: flows that have just come are served first, one quantum each."""
    state = hop()
    busy = [put(state, 0, MTU, NOT_ECT, 0) for _ in range(5)]
    assert dequeue(state, 0, 0) == busy[0]
    sparse = put(state, 1, 100, NOT_ECT, 0)
    assert [dequeue(state, 0, 0) for _ in range(2)] == [sparse, busy[1]]


def test_small_packets_get_as_many_bytes_as_large_ones() -> None:
    """Deficit round robin: five packets of 300 bytes for one of 1500."""
    state = hop()
    for _ in range(100):
        put(state, 0, MTU, NOT_ECT, 0)
        put(state, 1, 300, NOT_ECT, 0)
    sent = [0, 0]
    for _ in range(60):
        row = state.packets[dequeue(state, 0, 0)]
        sent[int(row["flow"])] += int(row["size"])
    assert abs(sent[0] - sent[1]) <= 2 * MTU


def test_a_full_buffer_takes_from_the_longest_queue() -> None:
    state = hop(limit_ms=10.0)  # 15,000 bytes
    for _ in range(9):
        put(state, 0, MTU, NOT_ECT, 0)
    meek = put(state, 1, MTU, NOT_ECT, 0)
    put(state, 1, 100, NOT_ECT, 0)
    assert int(state.hops[0]["overflowed"]) == 1
    assert int(state.fq[0, 0]["bytes"]) == 8 * MTU
    assert int(state.fq[0, 1]["head"]) == meek


STEP = st.one_of(
    st.tuples(
        st.just("put"), st.integers(0, 2), st.integers(64, MTU), st.sampled_from([NOT_ECT, ECT0])
    ),
    st.tuples(st.just("get"), st.just(0), st.just(0), st.just(0)),
)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(STEP, st.integers(0, 40)), max_size=120),
    st.sampled_from([8.0, 40.0, 1000.0]),
    st.integers(1, 4),
)
def test_the_compiled_queue_does_what_its_plain_twin_does(
    steps: list[tuple[tuple[str, int, int, int], int]], limit_ms: float, copies: int
) -> None:
    state = hop(limit_ms)
    plain = PlainFqCodel(int(state.hops[0]["limit"]), 3)
    now, count = SECOND, 0
    names: dict[int, int] = {}
    for (kind, flow, size, ecn), wait in steps:
        now += wait * MS
        if kind == "put":
            for _ in range(copies):
                names[put(state, flow, size, ecn, now)] = count
                plain.enqueue(flow, count, size, ecn, now)
                count += 1
            continue
        found, expected = dequeue(state, 0, now), plain.dequeue(now)
        if expected is None:
            assert found == NIL
            continue
        assert (names[found], int(state.packets[found]["ecn"]) == CE) == expected
        state.packets[found]["travelling"] = 0
        release(state, found)
    waiting = sum(queue.size for queue in plain.flows)
    assert int(state.hops[0]["bytes_c"]) == waiting
