"""A run's bytes as numbers and back, in numpy alone: bfloat16 is the upper half of a float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm

__all__ = ["Floats", "check_finite", "read_values", "write_values"]

_NOT_FINITE = "it gives values that no writer had"

Floats = np.ndarray[Any, np.dtype[np.float32]]


def read_values(run: memoryview, form: RunForm) -> Floats:
    """K and V as float32 [2, tokens, channels]; exact for every dtype."""
    shape = (2, form.num_tokens, form.num_channels)
    if form.shape.dtype == "bfloat16":
        halves = np.frombuffer(run, dtype="<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    dtype = "<f2" if form.shape.dtype == "float16" else "<f4"
    return np.frombuffer(run, dtype=dtype).astype(np.float32).reshape(shape)


def write_values(values: Floats, form: RunForm) -> memoryview:
    """Float32 [2, tokens, channels] as a run, rounded to the nearest, ties to even.

    Raises CorruptBlock for values that are not finite, or too large for the run's dtype: codecs write
    none, so the numbers they were made from are damaged.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if form.shape.dtype == "bfloat16":
        bits = flat.view(np.uint32)
        bits = bits + (((bits >> 16) & 1) + 0x7FFF)
        halves = (bits >> 16).astype("<u2")
        check_finite(halves)
        return halves.view(np.uint8).data
    with np.errstate(over="ignore", invalid="ignore"):
        run = flat.astype("<f2" if form.shape.dtype == "float16" else "<f4")
    if not np.isfinite(run).all():
        raise CorruptBlock(_NOT_FINITE)
    return run.view(np.uint8).data


def check_finite(bfloat16: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    """Raises CorruptBlock for bits of bfloat16 values that are infinite or no number."""
    if ((bfloat16 & 0x7F80) == 0x7F80).any():
        raise CorruptBlock(_NOT_FINITE)
