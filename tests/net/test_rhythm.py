"""Folding finds a beat, says what a queue did at this phase, and says nothing of noise."""

from __future__ import annotations

import numpy as np
import pytest

from kdn.net.l4s.rhythm import fold, note_beat
from kdn.net.l4s.tokens import new_track
from kdn.net.world.records import MS

PERIOD_MS = 1000.0 / 60.0


def note(track: np.ndarray, delay: float, low: bool, t_ns: int) -> None:
    note_beat(track[0], delay, low, t_ns)


def folded(track: np.ndarray, low: bool, t_ns: int) -> np.ndarray:
    out = np.zeros(8, np.float32)
    fold(track[0], low, t_ns, out)
    return out


def heard(delay_of: object, num: int = 400) -> np.ndarray:
    """A flow with a token every 2.4 ms, whose delay is `delay_of(t_ms)`."""
    assert callable(delay_of)
    track = new_track()
    for i in range(num):
        note(track, float(delay_of(2.4 * i)), True, int(2.4 * i * MS))
    return track


def saw(t_ms: float) -> float:
    """A burst at each beat: 2 falling to nothing within a fifth of the period."""
    phase = (t_ms / PERIOD_MS) % 1.0
    return max(2.0 * (1.0 - phase / 0.2), 0.0)


def test_the_period_of_bursts_is_found() -> None:
    track = heard(saw)
    turns = float(track["period"][0]) / MS / PERIOD_MS
    assert turns == pytest.approx(round(turns), abs=0.02)  # the beat, or a multiple of it
    assert track["share"][0] > 0.4


def test_phases_tell_a_burst_from_a_pause() -> None:
    track, after = heard(saw), 400 * 2.4
    beat = (after // PERIOD_MS + 1.0) * PERIOD_MS
    burst = folded(track, True, int((beat + 0.8) * MS))
    pause = folded(track, True, int((beat + 9.0) * MS))
    assert burst[0] > 2.0 * pause[0]
    assert burst[2] > 0.0 > pause[2]


def test_noise_has_no_beat() -> None:
    random = np.random.default_rng(1)
    track = heard(lambda _: random.exponential())
    assert track["share"][0] < 0.4


def test_a_new_flow_folds_to_nothing() -> None:
    assert not folded(new_track(), True, 0).any()
