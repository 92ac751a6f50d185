"""How many layers to read together: more only for as long as that makes reading faster.

    a memory or a near disk     1 1 1 2 2 4 6 6     a read is over in a moment
    a link that is the limit    1 1 1 2 2 1 1 1     more together was no faster
    a distant disk              1 1 1 2 2 4 4 6     most of the time is each read's latency

A layer can only be computed when all that is read with it has arrived, and the last read's layers
are computed with nothing left to load.  So reading more together costs time, unless it makes reading
faster.
"""

from __future__ import annotations

__all__ = ["Pace"]

MOMENT_S = 0.004
"""A read shorter than this delays no layer, and its fixed costs are worth saving."""

PAYS = 1.15
"""Growing must bring at least so many times the speed; less is within what reads differ by."""


class Pace:
    """The size of the next read, from how long the reads before it took."""

    def __init__(self, most: int) -> None:
        """`most` layers together, at least one."""
        self._most = max(most, 1)
        self._size = 1
        self._base: tuple[int, float] | None = None
        """The largest size known to pay, and its speed; None while reads were over in a moment."""
        self._is_final = False

    @property
    def size(self) -> int:
        """How many layers to read next."""
        return self._size

    def took(self, num_layers: int, seconds: float) -> None:
        """A read of `num_layers` is over. To be told in the order of the reads."""
        if self._is_final:
            return
        if seconds < MOMENT_S:
            self._grow(num_layers)
            return
        speed = num_layers / seconds
        if self._base is None:
            self._base = num_layers, speed
            self._grow(num_layers)
        elif num_layers > self._base[0]:
            self._judge(num_layers, speed)

    def _judge(self, num_layers: int, speed: float) -> None:
        """Was it better than the smaller size?"""
        assert self._base is not None, "there is something to compare with"
        if speed >= PAYS * self._base[1]:
            self._base = num_layers, speed
            self._grow(num_layers)
        else:
            self._size, self._is_final = self._base[0], True

    def _grow(self, num_layers: int) -> None:
        self._size = max(self._size, min(2 * num_layers, self._most))
