"""Blocks read in pieces by several threads: some wait for the device while another verifies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

from kdn.store.block.reader import Reader, Take

__all__ = ["AT_ONCE", "do_together", "layers_together", "read_in_pieces"]

_T = TypeVar("_T")
_HELPERS, _FAR_HELPERS = 4, 14
"""Of all loads together, and of those over a quick network, which may hang: a load that finds none free does
all of its work itself."""
AT_ONCE = 3
"""Threads for one load off a device. Two leave it idle while both verify."""
_PIECE_BYTES = 1 << 20
"""What one read asks for, rounded up to whole ranges: devices like large reads, caches small ones."""
_Piece = list[tuple[int, tuple[int, int]]]
"""Ranges that follow each other, with their numbers."""


def layers_together(readers: Sequence[Reader], start: int, stop: int) -> list[list[memoryview]]:
    """Of each block the runs of layers [start, stop), as `Reader.layers` gives and raises.

    Blocks of a device are read side by side, and those across a network that is quick: either is idle
    between the last piece of one and the first of the next where they are read in turn.
    """
    runs: dict[int, list[memoryview]] = {}

    def read(number: int) -> None:
        runs[number] = readers[number].layers(start, stop)

    at_once = [reader.at_once for reader in readers]
    together = [number for number, count in enumerate(at_once) if count > 1]
    do_together(read, together, max(at_once, default=1))
    for number in range(len(readers)):
        if number not in runs:
            read(number)
    return [runs[number] for number in range(len(readers))]


def read_in_pieces(
    read: Callable[[int, int], memoryview], ranges: Sequence[tuple[int, int]], then: Take
) -> None:
    """As `Handle.read_each`, with up to three reads in flight."""

    def work(piece: _Piece) -> None:
        begin, stop = piece[0][1][0], piece[-1][1][1]
        data = read(begin, stop)
        for number, (start, end) in piece:
            then(number, data[start - begin : end - begin])

    do_together(work, _pieces(ranges))


def _pieces(ranges: Sequence[tuple[int, int]]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for number, one in enumerate(ranges):
        if not pieces or one[0] - pieces[-1][0][1][0] >= _PIECE_BYTES:
            pieces.append([])
        pieces[-1].append((number, one))
    return pieces


def do_together(work: Callable[[_T], None], parts: Sequence[_T], at_once: int = AT_ONCE) -> None:
    """Do `work` for each part, in order, `at_once` at a time: by this thread and others that are free.

    Returns when all is done. After a failure no further part begins; the first failed part's error is raised.
    """
    left = deque(enumerate(parts))
    failures: list[tuple[int, BaseException]] = []

    def go_on() -> None:
        while left and not failures:
            try:
                number, part = left.popleft()
            except IndexError:  # another thread took it meanwhile
                return
            try:
                work(part)
            except BaseException as error:  # noqa: BLE001  it is raised below
                failures.append((number, error))

    pool = _helpers(_FAR_HELPERS if at_once > AT_ONCE else _HELPERS)
    helpers = [pool.submit(go_on) for _ in parts[1:at_once]]
    waiting: list[Callable[[], object]] = [go_on, *(partial(_end, helper) for helper in helpers)]
    while waiting:
        try:
            waiting[0]()
            waiting.pop(0)
        except BaseException as error:  # noqa: BLE001  Ctrl-C while we wait: nothing is left running
            failures.append((-1, error))
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def _end(helper: Future[None]) -> None:
    if not helper.cancel():
        helper.result()


@lru_cache(maxsize=2)
def _helpers(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="kdn-reader")
