"""A run's bytes as numbers and back, in numpy alone: bfloat16 is the upper half of a float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdn.store.codecs.codec import RunForm

__all__ = ["Floats", "read_values", "write_values"]

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
    """Float32 [2, tokens, channels] as a run, rounded to the nearest, ties to even. All finite."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if form.shape.dtype == "bfloat16":
        bits = flat.view(np.uint32)
        bits = bits + (((bits >> 16) & 1) + 0x7FFF)
        return (bits >> 16).astype("<u2").view(np.uint8).data
    dtype = "<f2" if form.shape.dtype == "float16" else "<f4"
    return flat.astype(dtype).view(np.uint8).data
