"""The beat in a flow's delays: which period folds them best, and what they were at this phase.

Video in the low-latency queue comes in bursts at a frame rate.  A flow with a packet every few
milliseconds hits each burst rarely, so its newest delays say little; delays of the same phase,
many frames ago, say much.  Periods are tried a few per token, on the share of variance that their
phases explain (an epoch-folding search); packets in the classic queue help, since they wait
after the same bursts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdn.net.world.compiled import compiled
from kdn.net.world.records import MS, Rows

__all__ = ["NUM_FOLDED", "RING", "TRACK_FIELDS", "fold", "note_beat"]

RING = 512
"""Tokens remembered for folding."""
NUM_FOLDED = 8
_SPAN = 400 * MS
_SHORTEST, _STEP, _NUM_PERIODS = 10.0 * MS, 0.08 * MS, 416
_TRIED_EACH = 8
_BIN = 1.0 * MS
_MAX_BINS = 48
_REACH = 1.2 * MS
_MEAN_GAIN = 1.0 / 32.0
_PEAK_GAIN = 1.0 / 96.0

TRACK_FIELDS = [
    ("beat_t", "i8", (RING,)),
    ("beat_delay", "f4", (RING,)),  # squashed
    ("beat_off", "f4", (RING,)),  # the same, less its queue's mean
    ("beat_low", "i1", (RING,)),
    ("beats", "i8"),
    ("trying", "i8"),  # the next period of the sweep
    ("best", "f8"),  # of this sweep so far
    ("best_share", "f8"),
    ("period", "f8"),  # found by the last whole sweep, ns; 0 is none
    ("share", "f8"),  # of the variance that its phases explain
    ("mean_l", "f8"),  # smoothed squashed delay of each queue, over tokens
    ("mean_c", "f8"),
    ("peak_l", "f8"),  # their decaying maxima
    ("peak_c", "f8"),
]


@compiled
def note_beat(t: Rows, delay: float, low: bool, t_send: int) -> None:
    """Remember a token's squashed delay, and try a few more periods."""
    if low:
        t.mean_l += _MEAN_GAIN * (delay - t.mean_l)
        t.peak_l = max(delay, t.peak_l + _PEAK_GAIN * (t.mean_l - t.peak_l))
        off = delay - t.mean_l
    else:
        t.mean_c += _MEAN_GAIN * (delay - t.mean_c)
        t.peak_c = max(delay, t.peak_c + _PEAK_GAIN * (t.mean_c - t.peak_c))
        off = delay - t.mean_c
    at = t.beats % RING
    t.beat_t[at], t.beat_delay[at], t.beat_off[at] = t_send, delay, off
    t.beat_low[at] = 1 if low else 0
    t.beats += 1
    for _ in range(_TRIED_EACH):
        _try_next(t)


@compiled
def _try_next(t: Rows) -> None:
    period = _SHORTEST + _STEP * t.trying
    share = _explained(t, period)
    if share > t.best_share:
        t.best, t.best_share = period, share
    t.trying += 1
    if t.trying == _NUM_PERIODS:
        t.period, t.share = t.best, t.best_share
        t.trying, t.best, t.best_share = 0, 0.0, 0.0


@compiled
def _explained(t: Rows, period: float) -> float:
    """Share of the variance between phases, less what chance would explain; at least 0."""
    total, squares = np.zeros(_MAX_BINS), 0.0
    count = np.zeros(_MAX_BINS)
    bins = min(int(period / _BIN), _MAX_BINS)
    num, everything = 0, 0.0
    newest = t.beat_t[(t.beats - 1) % RING]
    for back in range(min(t.beats, RING)):
        at = (t.beats - 1 - back) % RING
        age = newest - t.beat_t[at]
        if age > _SPAN:
            break
        turns = age / period
        place = min(int((turns - np.floor(turns)) * bins), bins - 1)
        off = t.beat_off[at]
        total[place] += off
        count[place] += 1.0
        everything += off
        squares += off * off
        num += 1
    if num < 2 * bins:
        return 0.0
    mean = everything / num
    whole = squares - num * mean * mean
    between, used = -num * mean * mean, 0
    for i in range(bins):
        if count[i] > 0.0:
            between += total[i] * total[i] / count[i]
            used += 1
    if whole <= 1e-9:
        return 0.0
    return max(1.0 - (1.0 - between / whole) * (num - 1) / max(num - used, 1), 0.0)


@compiled
def fold(t: Rows, low: bool, now: int, out: NDArray[np.float32]) -> None:
    """What the queue did at this phase before, and over the long run, into `out` [8].

    Same-queue mean and maximum at the phase, both queues' deviation there, the weight of the
    evidence, the share explained, then the queue's mean and peak and the other queue's mean.
    """
    weight, delay, top, both, off = 0.0, 0.0, 0.0, 0.0, 0.0
    mean = t.mean_l if low else t.mean_c
    if t.period > 0.0:
        for back in range(min(t.beats, RING)):
            at = (t.beats - 1 - back) % RING
            age = now - t.beat_t[at]
            if age > _SPAN + 100 * MS:
                break
            turns = age / t.period
            apart = abs(turns - np.floor(turns + 0.5)) * t.period
            if apart < _REACH:
                w = 1.0 - apart / _REACH
                both += w
                off += w * t.beat_off[at]
                if (t.beat_low[at] == 1) == low:
                    weight += w
                    delay += w * t.beat_delay[at]
                    top = max(top, w * t.beat_delay[at])
    out[0] = (delay + mean) / (weight + 1.0)
    out[1] = top
    out[2] = off / (both + 1.0)
    out[3] = np.log1p(weight) * 0.5
    out[4] = t.share
    out[5], out[6] = mean, t.peak_l if low else t.peak_c
    out[7] = t.mean_c if low else t.mean_l
