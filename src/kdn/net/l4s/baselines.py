"""What the Transformer is compared with: six ways to guess a delay from the same tokens.

Each takes `Samples` and gives a guess (ns) per question; those that learn are fitted on other
flows first.  Guesses use only tokens that had arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.tokens import NUM_ASKED, NUM_FEATURES, WINDOW, Samples
from kdn.net.world.compiled import compiled
from kdn.net.world.records import MS

__all__ = ["Arima", "Ridge", "ewma", "last_value", "window_mean", "window_p95"]

Guess = NDArray[np.float64]


def last_value(samples: Samples) -> Guess:
    """The newest known delay of the same queue."""
    return samples.last


@compiled
def _ewma(
    delay: Guess, token_low: NDArray[np.bool_], known: NDArray[np.int64], low: NDArray[np.bool_]
) -> Guess:
    out = np.zeros(len(known))
    state = np.zeros(2)
    seen = np.zeros(2, np.int64)
    heard = 0
    for i in range(len(known)):
        while heard < known[i]:
            queue = 1 if token_low[heard] else 0
            gain = 0.125 if seen[queue] else 1.0
            state[queue] += gain * (delay[heard] - state[queue])
            seen[queue] = 1
            heard += 1
        out[i] = state[1 if low[i] else 0]
    return out


def ewma(samples: Samples) -> Guess:
    """The same queue's delays, smoothed by an eighth."""
    return _ewma(samples.token_delay, samples.token_low, samples.known, samples.low)


@compiled
def _window(
    delay: Guess,
    token_low: NDArray[np.bool_],
    known: NDArray[np.int64],
    low: NDArray[np.bool_],
    share: float,
) -> Guess:
    out = np.zeros(len(known))
    kept = np.empty(8)
    for i in range(len(known)):
        count, j = 0, known[i] - 1
        while j >= 0 and count < 8 and j >= known[i] - 50:
            if token_low[j] == low[i]:
                kept[count] = delay[j]
                count += 1
            j -= 1
        if count > 0:
            values = np.sort(kept[:count])
            out[i] = values.mean() if share < 0.0 else values[min(int(share * count), count - 1)]
    return out


def window_mean(samples: Samples) -> Guess:
    """The mean of the same queue's last eight tokens."""
    return _window(samples.token_delay, samples.token_low, samples.known, samples.low, -1.0)


def window_p95(samples: Samples) -> Guess:
    """Their 95th percentile: a cautious guess."""
    return _window(samples.token_delay, samples.token_low, samples.known, samples.low, 0.95)


@compiled
def _flatten(
    tokens: NDArray[np.float32],
    token_t: NDArray[np.int64],
    questions: NDArray[np.float32],
    asked_t: NDArray[np.int64],
    known: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[rows, 1 + 16 + 50 * 9] a constant, the question, and each token with its age."""
    width = 1 + NUM_ASKED + WINDOW * (NUM_FEATURES + 1)
    out = np.zeros((len(rows), width))
    for n in range(len(rows)):
        i = rows[n]
        out[n, 0] = 1.0
        out[n, 1 : 1 + NUM_ASKED] = questions[i]
        for back in range(min(WINDOW, known[i])):
            j = known[i] - 1 - back
            at = 1 + NUM_ASKED + back * (NUM_FEATURES + 1)
            out[n, at : at + NUM_FEATURES] = tokens[j]
            out[n, at + NUM_FEATURES] = np.log1p(max(asked_t[i] - token_t[j], 0) / MS) * 0.2
    return out


def _features(samples: Samples, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    s = samples
    return _flatten(s.tokens, s.token_t, s.questions, s.asked_t, s.known, rows)


@dataclass(frozen=True)
class Ridge:
    """Linear regression on the same 50 tokens and question, closed form, on the squashed scale."""

    weights: NDArray[np.float64]

    @staticmethod
    def fit(flows: Sequence[Samples], per_flow: int = 1000, penalty: float = 10.0) -> Ridge:
        """From at most `per_flow` evenly spread questions of each flow."""
        width = 1 + NUM_ASKED + WINDOW * (NUM_FEATURES + 1)
        square, cross = penalty * np.eye(width), np.zeros(width)
        for flow in flows:
            step = max(len(flow.questions) // per_flow, 1)
            rows = np.arange(0, len(flow.questions), step)
            x = _features(flow, rows)
            y = np.arcsinh(flow.delay[rows] / MS) - np.arcsinh(flow.last[rows] / MS)
            square += x.T @ x
            cross += x.T @ y
        return Ridge(np.asarray(np.linalg.solve(square, cross), np.float64))

    def __call__(self, samples: Samples) -> Guess:
        out = np.zeros(len(samples.questions))
        for start in range(0, len(out), 4096):
            rows = np.arange(start, min(start + 4096, len(out)))
            change = _features(samples, rows) @ self.weights
            out[rows] = np.sinh(np.clip(change + np.arcsinh(samples.last[rows] / MS), 0, 9)) * MS
        return out


def _lags(series: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """[len - order, order]: the `order` values before each one, newest first."""
    size = len(series) - order
    return np.stack([series[order - 1 - k : order - 1 - k + size] for k in range(order)], axis=1)


@dataclass(frozen=True)
class Arima:
    """ARIMA(3,1,1) on each queue's squashed delays, by Hannan and Rissanen's two regressions."""

    ar: NDArray[np.float64]
    ma: float

    @staticmethod
    def fit(flows: Sequence[Samples]) -> Arima:
        """One set of coefficients from all flows and both queues."""
        xs, ys = [], []
        for flow in flows:
            for low in (True, False):
                found = _regressors(flow, low)
                if found is not None:
                    xs.append(found[0])
                    ys.append(found[1])
        x, y = np.concatenate(xs), np.concatenate(ys)
        normal = x.T @ x + 1e-6 * np.eye(4)
        solved = np.asarray(np.linalg.solve(normal, x.T @ y), np.float64)
        return Arima(solved[:3], float(np.clip(solved[3], -0.95, 0.95)))

    def __call__(self, samples: Samples) -> Guess:
        guess = _arima(
            samples.token_delay, samples.token_low, samples.known, samples.low, self.ar, self.ma
        )
        return np.maximum(guess, 0.0)


def _regressors(flow: Samples, low: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Three past differences and one past innovation against the next difference."""
    series = np.diff(np.arcsinh(flow.token_delay[flow.token_low == low] / MS))
    if len(series) < 60:
        return None
    long = _lags(series, 10)
    y = series[10:]
    innovation = y - long @ np.linalg.lstsq(long, y, rcond=None)[0]
    return np.column_stack([long[1:, :3], innovation[:-1]]), y[1:]


@compiled
def _arima(
    delay: Guess,
    token_low: NDArray[np.bool_],
    known: NDArray[np.int64],
    low: NDArray[np.bool_],
    ar: NDArray[np.float64],
    ma: float,
) -> Guess:
    out = np.zeros(len(known))
    level = np.zeros(2)
    change = np.zeros((2, 3))
    forecast = np.zeros(2)
    heard = 0
    for i in range(len(known)):
        while heard < known[i]:
            q = 1 if token_low[heard] else 0
            value = np.arcsinh(delay[heard] / MS)
            innovation = value - level[q] - forecast[q]
            change[q, 2], change[q, 1] = change[q, 1], change[q, 0]
            change[q, 0] = value - level[q]
            level[q] = value
            forecast[q] = (change[q] * ar).sum() + ma * innovation
            heard += 1
        q = 1 if low[i] else 0
        out[i] = np.sinh(level[q] + forecast[q]) * MS
    return out
