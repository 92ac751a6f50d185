"""The distributions that coded numbers may have: normal and Laplace, each in 24 widths.

A channel names one of them in six bits, where a table of its own would take more room than it
saves in 256 tokens.  Frequencies are whole numbers out of 4096 and part of the format: they are
computed in decimal arithmetic, which gives the same digits on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np

__all__ = ["ESCAPE", "NUM_SHAPES", "SCALE_BITS", "Shapes", "shapes"]

SCALE_BITS = 12
ESCAPE = -128
"""The symbol of a number outside its shape's reach; the number itself stands elsewhere."""
_WIDTHS = 24
NUM_SHAPES = 2 * _WIDTHS
_LARGEST_REACH = 126
_ESCAPE_BITS = 32

Density = Callable[[Decimal, Decimal], Decimal]


@dataclass(frozen=True)
class Shapes:
    """All shapes as tables; symbols are signed bytes and index as unsigned ones."""

    spans: np.ndarray[Any, np.dtype[np.uint32]]
    """[shapes, 256]: where a symbol's slots start << 16 | how many it has (0: not in the shape)."""
    slots: np.ndarray[Any, np.dtype[np.uint32]]
    """[shapes, 4096]: frequency << 20 | place within the symbol's slots << 8 | symbol."""
    bits: np.ndarray[Any, np.dtype[np.float32]]
    """[shapes, 256]: what a symbol costs; one out of reach what its escape costs."""
    reach: np.ndarray[Any, np.dtype[np.int32]]
    """[shapes]: the largest magnitude that needs no escape."""


@cache
def shapes() -> Shapes:
    """The tables, made on first use in a few hundredths of a second."""
    spans = np.zeros((NUM_SHAPES, 256), dtype=np.uint32)
    slots = np.zeros((NUM_SHAPES, 1 << SCALE_BITS), dtype=np.uint32)
    bits = np.zeros((NUM_SHAPES, 256), dtype=np.float32)
    reach = np.zeros(NUM_SHAPES, dtype=np.int32)
    for number, frequencies in enumerate(_all_frequencies()):
        reach[number] = (len(frequencies) - 2) // 2
        _lay_out(frequencies, int(reach[number]), spans[number], slots[number])
        counts = spans[number] & 0xFFFF
        escape = SCALE_BITS - np.log2(counts[ESCAPE]) + _ESCAPE_BITS
        bits[number] = np.where(counts > 0, SCALE_BITS - np.log2(np.maximum(counts, 1)), escape)
        bits[number, ESCAPE] = escape
    return Shapes(spans, slots, bits, reach)


def _all_frequencies() -> list[list[int]]:
    """For every shape the frequencies of -reach..reach, then of the escape."""
    with localcontext() as context:
        context.prec = 24
        cube_root = Decimal(2) ** (Decimal(1) / 3)
        widths = [Decimal("0.2") * cube_root**step for step in range(_WIDTHS)]
        normal = [_frequencies(width, _normal, reach_widths=5) for width in widths]
        laplace = [_frequencies(width, _laplace, reach_widths=8) for width in widths]
    return normal + laplace


def _normal(distance: Decimal, width: Decimal) -> Decimal:
    return (-((distance / width) ** 2) / 2).exp()


def _laplace(distance: Decimal, width: Decimal) -> Decimal:
    """With standard deviation `width`."""
    return (-abs(distance) * Decimal(2).sqrt() / width).exp()


def _frequencies(width: Decimal, density: Density, reach_widths: int) -> list[int]:
    reach = min(int(reach_widths * width) + 1, _LARGEST_REACH)
    half = [_mass(Decimal(number), width, density) for number in range(reach + 1)]
    total = 2 * sum(half) - half[0]
    free = (1 << SCALE_BITS) - (2 * reach + 2)
    rounded = [1 + int(mass * free / total) for mass in half]
    both = [*rounded[:0:-1], *rounded, 1]
    both[reach] += (1 << SCALE_BITS) - sum(both)
    return both


def _mass(number: Decimal, width: Decimal, density: Density) -> Decimal:
    """The density over [number - 1/2, number + 1/2], at four points where it is steep."""
    if width > 4:
        return density(number, width)
    points = (Decimal("-0.375"), Decimal("-0.125"), Decimal("0.125"), Decimal("0.375"))
    return sum((density(number + point, width) for point in points), Decimal(0)) / 4


def _lay_out(
    frequencies: list[int],
    reach: int,
    spans: np.ndarray[Any, np.dtype[np.uint32]],
    slots: np.ndarray[Any, np.dtype[np.uint32]],
) -> None:
    start = 0
    for symbol, frequency in zip([*range(-reach, reach + 1), ESCAPE], frequencies, strict=True):
        spans[symbol & 0xFF] = start << 16 | frequency
        within = np.arange(frequency, dtype=np.uint32)
        slots[start : start + frequency] = (frequency << 20) | (within << 8) | (symbol & 0xFF)
        start += frequency
    assert start == 1 << SCALE_BITS, "frequencies must fill the scale"
