"""Decoding beside busy programs: does sharing the processors cost more than one thread would pay?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kdn.bench.common.measure import interleave, median
from kdn.bench.common.result import BenchOptions, Row
from kdn.bench.engine.contestants import KdnContestant
from kdn.bench.engine.lineup import OURS, opened
from kdn.core import TokenIds

__all__ = ["busy_decoding"]

_ONE = "one thread"
_NUM_BUSY = 4
_NUM_TOKENS = 17
_WARM = 2
"""Rounds before those that count: threads give way after a quarter of a second."""


def busy_decoding(
    options: BenchOptions, scratch: Path, ours: KdnContestant, prompt: TokenIds, rounds: int
) -> Row:
    """Milliseconds a token beside four busy processes, with our threads and with one."""
    import torch

    with opened(options, scratch, name="single", threads=1) as single, _busy_processes():
        sides = {
            OURS: partial(_token_s, ours, prompt),
            _ONE: partial(_token_s, KdnContestant(single.engine, options.clock), prompt),
        }
        interleave(sides, _WARM, rest_s=0)
        samples = interleave(sides, rounds, first=_WARM, rest_s=0)
    torch.set_num_threads(options.threads)
    found = {name: 1000 * (median(samples, name) or 0.0) for name in sides}
    row: Row = {
        "measure": "a token beside four busy processes, ms",
        "tokens": len(prompt),
        "batch": 1,
    }
    return row | found | {"slowdown": found[OURS] / found[_ONE]}


def _token_s(contestant: KdnContestant, prompt: TokenIds, _number: int) -> float:
    arrivals = contestant.arrivals_s([prompt], _NUM_TOKENS)
    assert arrivals is not None
    return (arrivals[0][-1] - arrivals[0][0]) / (_NUM_TOKENS - 1)


@contextmanager
def _busy_processes() -> Iterator[None]:
    """Four that compute for as long as this is entered."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(_NUM_BUSY)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
