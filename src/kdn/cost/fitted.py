"""A machine's speed out of runs that were timed: least squares, no time below zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdn.cost.speed import PairJct, Speed
from kdn.cost.units import BytesPerSecond
from kdn.errors import BadInput

__all__ = ["FittedSpeed", "TimedRun", "fit_speed"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TimedRun:
    """One request, timed: what it computed, found, loaded and generated."""

    new_tokens: int
    cached_tokens: int
    output_tokens: int
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class FittedSpeed:
    """What was found, in the shape that the cost model takes."""

    speed: Speed
    load_latency_s: float
    """Of a hit, whatever its length."""
    bandwidth: BytesPerSecond
    """How fast stored KV comes."""


def fit_speed(runs: Sequence[TimedRun], token_bytes: int) -> FittedSpeed:
    """Prefill from runs that found nothing, loading from what hits took beyond it, decoding from
    what came after the first token.  Errors count relative to the time.

    Raises BadInput when there are fewer runs of a kind than it has unknowns.
    """
    cold = [run for run in runs if not run.cached_tokens]
    warm = [run for run in runs if run.cached_tokens]
    long = [run for run in runs if run.output_tokens > 1]
    if len(cold) < 3 or len(warm) < 2 or len(long) < 2:
        raise BadInput(
            f"{len(cold)} cold, {len(warm)} warm and {len(long)} decoding runs were timed: at least"
            " 3, 2 and 2 are needed"
        )
    prefill = _prefill(cold)
    latency_s, byte_s = _load(warm, prefill, token_bytes)
    step_s, column_s = _decode(long)
    speed = Speed(prefill, step_s, column_s, token_bytes)
    return FittedSpeed(speed, latency_s, BytesPerSecond(1 / max(byte_s, 1e-15)))


def _prefill(runs: Sequence[TimedRun]) -> PairJct:
    rows = [(1.0, run.new_tokens, run.new_tokens * (run.new_tokens + 1) / 2) for run in runs]
    return PairJct(*_solve(rows, [run.first_token_s for run in runs]))


def _load(runs: Sequence[TimedRun], prefill: PairJct, token_bytes: int) -> tuple[float, float]:
    beyond = [
        max(1e-6, run.first_token_s - prefill.seconds(run.new_tokens, run.cached_tokens))
        for run in runs
    ]
    weights = [run.first_token_s for run in runs]
    rows = [(1.0, float(run.cached_tokens * token_bytes)) for run in runs]
    latency_s, byte_s = _solve(rows, beyond, weights)
    return latency_s, byte_s


def _decode(runs: Sequence[TimedRun]) -> tuple[float, float]:
    rows, times = [], []
    for run in runs:
        steps = run.output_tokens - 1
        context = run.new_tokens + run.cached_tokens
        rows.append((float(steps), steps * (context + steps / 2)))
        times.append(run.total_s - run.first_token_s)
    step_s, column_s = _solve(rows, times)
    return step_s, column_s


def _solve(
    rows: Sequence[Sequence[float]], times: Sequence[float], weights: Sequence[float] | None = None
) -> list[float]:
    """Least relative squares without negative answers: what would be below zero is left out."""
    scale = np.asarray(weights if weights is not None else times, dtype=np.float64)
    matrix: Floats = np.asarray(rows, dtype=np.float64) / scale[:, None]
    wanted: Floats = np.asarray(times, dtype=np.float64) / scale
    units = np.abs(matrix).max(axis=0)
    units[units == 0] = 1.0
    columns = list(range(matrix.shape[1]))
    while columns:
        found = np.linalg.lstsq((matrix / units)[:, columns], wanted, rcond=None)[0]
        if (found >= 0).all():
            answer = np.zeros(matrix.shape[1])
            answer[columns] = found / units[columns]
            return [float(value) for value in answer]
        columns.pop(int(found.argmin()))
    return [0.0] * matrix.shape[1]
