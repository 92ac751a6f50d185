"""Time and money: how long a prompt takes."""

from __future__ import annotations

from kdn.cost.jct import (
    GRID,
    JctSample,
    count_jct,
    fit_jct,
    jct_file,
    load_jct,
    measure_grid,
    save_jct,
)

__all__ = [
    "GRID",
    "JctSample",
    "count_jct",
    "fit_jct",
    "jct_file",
    "load_jct",
    "measure_grid",
    "save_jct",
]
