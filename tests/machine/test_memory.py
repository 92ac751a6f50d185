"""Large buffers: zeros always, never one address twice, and pages that come back."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.machine.memory import OWN_PAGES_FROM, PagePool, allocate

MB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the pool is for Linux")


def always() -> bool:
    return True


def test_a_buffer_that_comes_back_is_zeros_again_and_lies_where_it_lay() -> None:
    pool = PagePool(16 * MB, keep_bytes=8 * MB)
    first = pool.allocate(3 * MB)
    assert first is not None
    first[:] = b"\xff" * first.nbytes
    where = np.frombuffer(first, np.uint8).ctypes.data
    part = first[MB : 2 * MB].toreadonly()
    del first
    assert pool.ready_bytes == 0, "a view of it is still there"
    assert part[0] == 0xFF
    del part
    assert pool.ready_bytes == 3 * MB

    again = pool.allocate(2 * MB)
    assert again is not None
    assert np.frombuffer(again, np.uint8).ctypes.data == where
    assert not any(again)
    assert pool.ready_bytes == MB
    pool.check()


def test_the_system_gets_what_exceeds_the_limit_and_it_comes_back_as_zeros() -> None:
    pool = PagePool(16 * MB, keep_bytes=2 * MB)
    buffers = [pool.allocate(2 * MB) for _ in range(3)]
    for buffer in buffers:
        assert buffer is not None
        buffer[:] = b"\x01" * buffer.nbytes
    del buffer
    buffers.clear()
    assert pool.ready_bytes == 2 * MB
    pool.check()
    whole = pool.allocate(4 * MB)  # the ranges without pages were joined
    assert whole is not None
    assert not any(whole)
    assert pool.ready_bytes == 2 * MB


def test_who_asks_for_more_than_there_are_addresses_gets_none() -> None:
    pool = PagePool(4 * MB, keep_bytes=0)
    held = pool.allocate(3 * MB)
    assert pool.allocate(2 * MB) is None
    assert pool.allocate(MB) is not None
    del held
    assert pool.allocate(3 * MB) is not None


def test_pages_are_made_while_there_is_time() -> None:
    pool = PagePool(64 * MB, keep_bytes=32 * MB)
    answers = iter([True, True, False])
    pool.make_ready(16 * MB, lambda: next(answers))
    assert pool.ready_bytes == 8 * MB, "two pieces of 4 MB"
    pool.make_ready(16 * MB, always)
    assert pool.ready_bytes == 16 * MB

    passing = [pool.allocate(4 * MB) for _ in range(3)]
    kept = pool.allocate(4 * MB)
    del passing[:]
    assert pool.ready_bytes == 12 * MB
    pool.make_ready(16 * MB, always)
    assert pool.ready_bytes == 28 * MB, "what passes again, 12 MB, and 16 beside it"
    pool.make_ready(64 * MB, always)
    assert pool.ready_bytes == 32 * MB, "no more than is kept"
    assert kept is not None
    pool.check()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=40))
def test_buffers_that_live_together_never_share_a_byte(steps: list[tuple[int, int]]) -> None:
    """Each is filled with a number of its own, which stays until it goes."""
    pool = PagePool(8 * MB, keep_bytes=MB)
    held: list[tuple[int, memoryview]] = []
    for number, (size, going) in enumerate(steps):
        buffer = pool.allocate(size * 100_000)
        if buffer is not None:
            assert not np.frombuffer(buffer, np.uint8).any()
            np.frombuffer(buffer, np.uint8)[:] = number + 1
            held.append((number + 1, buffer))
        if going < len(held):
            mark, gone = held.pop(going)
            assert (np.frombuffer(gone, np.uint8) == mark).all()
            del gone, buffer
        pool.check()
    for mark, one in held:
        assert (np.frombuffer(one, np.uint8) == mark).all()


def test_threads_give_back_what_others_took() -> None:
    pool = PagePool(64 * MB, keep_bytes=16 * MB)

    def work(mark: int) -> None:
        for _ in range(50):
            buffer = pool.allocate(MB)
            assert buffer is not None
            array = np.frombuffer(buffer, np.uint8)
            assert not array.any()
            array[:] = mark
            assert (array == mark).all()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    pool.check()
    assert pool.ready_bytes >= MB


@pytest.mark.parametrize("size", [1, OWN_PAGES_FROM - 1, OWN_PAGES_FROM, 3 * MB + 5])
def test_every_size_is_writable_zeros(size: int) -> None:
    buffer = allocate(size)
    assert buffer.nbytes == size
    assert not any(buffer)
    buffer[-1] = 7
    assert buffer[-1] == 7
