"""Two workers run the tests side by side; a test that measures time waits until it is alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["Turns"]


class Turns:
    """A lock of several processes: any number of tests at once, or a single one that is alone.

    It is two files in `folder`. A test passes the gate to come in, and a test that wants to be alone
    holds the gate until the others have left: those that come later wait behind it, so it waits
    for one test of each worker at most.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._inside = folder / "gate", folder / "inside"

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Come in when it is this test's turn, and leave at the end of the block."""
        with self._inside.open("a") as inside:
            with self._gate.open("a") as gate, _held(gate, fcntl.LOCK_EX):
                fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            try:
                yield
            finally:
                fcntl.flock(
                    inside, fcntl.LOCK_UN
                )  # a process that the test left behind holds nothing


@contextmanager
def _held(file: IO[str], how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
