"""Ranges read by several threads: what a plain read gives, in any order, and the first failure."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.errors import CorruptBlock
from kdn.store import DiskTier, MemoryTier, Store
from kdn.store.block.pieces import do_together, layers_together, read_in_pieces
from kdn.store.block.reader import BytesHandle
from kdn.trace import NoTrace
from tests.store.helpers import block_id, make_block, run_of

KB = 1 << 10


@given(st.lists(st.integers(1, 700), min_size=1, max_size=12), st.integers(0, 5000))
def test_each_range_is_taken_once_with_the_bytes_a_plain_read_gives(
    sizes: list[int], first: int
) -> None:
    ranges, at = [], first
    for size in sizes:
        ranges.append((at, at + size * KB))
        at += size * KB
    data = memoryview(bytes(n % 251 for n in range(5)) * (at // 5 + 1))[:at]
    asked: list[tuple[int, int]] = []
    plain: dict[int, memoryview] = {}
    taken: dict[int, memoryview] = {}

    def read(start: int, stop: int) -> memoryview:
        asked.append((start, stop))
        return data[start:stop]

    def take(number: int, part: memoryview) -> None:
        assert number not in taken
        taken[number] = part

    BytesHandle(data).read_each(ranges, plain.__setitem__)
    read_in_pieces(read, ranges, take)
    assert taken == plain
    starts, stops = zip(*sorted(asked), strict=True)
    assert starts == (first, *stops[:-1]), "reads follow each other and cover all"
    assert stops[-1] == at
    assert all(stop - start >= 1024 * KB for start, stop in sorted(asked)[:-1])


def test_another_part_begins_while_one_waits() -> None:
    """The first part goes on only once the second has begun: one thread alone would wait for ever."""
    began = threading.Event()

    def work(part: str) -> None:
        if part == "second":
            began.set()
        else:
            assert began.wait(30)

    do_together(work, ["first", "second"])


def test_ctrl_c_while_others_work_waits_for_them() -> None:
    """What they open, the caller then closes."""
    main, done = threading.main_thread().ident, list[int]()
    began = threading.Event()

    def work(part: int) -> None:
        if threading.get_ident() == main:
            assert began.wait(30)
            return
        began.set()
        signal.pthread_kill(main or 0, signal.SIGINT)
        done.append(part)

    with pytest.raises(KeyboardInterrupt):
        do_together(work, range(2), 2)
    assert len(done) == 1


def test_after_a_failure_nothing_begins_and_the_first_one_is_raised() -> None:
    done: list[int] = []

    def work(part: int) -> None:
        done.append(part)
        raise CorruptBlock(f"part {part}")

    with pytest.raises(CorruptBlock, match="part 0"):
        do_together(work, range(100))
    assert len(done) <= 3, "one for each thread"


def test_blocks_of_a_device_are_read_side_by_side_and_others_in_turn(tmp_path: Path) -> None:
    """Each gives what it gives alone, in the order of the readers, and a damaged one is raised."""
    disk = DiskTier(tmp_path, 10**7, ManualClock(), NoTrace())
    memory = MemoryTier(10**7, NoTrace())
    store = Store([memory, disk], clock=ManualClock())
    blocks = [make_block(block_id(range(first, first + 100))) for first in range(6)]
    for block in blocks:
        store.put(block)
    for block in blocks[:4]:
        memory.drop(block.id.key)
    with ExitStack() as held:
        readers = [held.enter_context(reader) for b in blocks if (reader := store.open(b.id))]
        assert [reader.at_once for reader in readers] == [3] * 4 + [1] * 2
        runs = layers_together(readers, 1, 3)
    assert [[bytes(run) for run in each] for each in runs] == [
        [run_of(block.id, layer) for layer in (1, 2)] for block in blocks
    ]
    store.close()
