"""What the engine's thread spends its time on, and how long a row of a pass takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from kdn.clock import Clock

__all__ = ["Part", "PassPace", "StepTimes"]

_FIRST_ROW_S = 0.25e-3
"""A row's share of a pass before any was timed."""
_LEAST_PASS_S = 1e-4

Part = Literal["wait", "admit", "prefill", "decode", "draw", "retain"]
"""Idle; planning and memory; prompts; decode steps; drawing and telling tokens; handing KV to the store."""


class StepTimes:
    """Seconds by part. One thread calls `spent`; any may read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None
        self._seconds: dict[str, float] = dict.fromkeys(get_args(Part), 0.0)

    def spent(self, part: Part) -> None:
        """What has passed since the last call went into `part`."""
        now_s = self._clock.now()
        if self._since_s is not None:
            self._seconds[part] += now_s - self._since_s
        self._since_s = now_s

    def seconds(self) -> Mapping[str, float]:
        """Of every part, since the start."""
        return dict(self._seconds)


class PassPace:
    """How long a row of a pass takes, by the last pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun_s = 0.0
        self._row_s = _FIRST_ROW_S

    def begin(self) -> None:
        """A pass begins."""
        self._begun_s = self._clock.now()

    def end(self, num_rows: int) -> None:
        """The pass of so many rows is over."""
        seconds = max(self._clock.now() - self._begun_s, _LEAST_PASS_S)
        self._row_s = seconds / max(num_rows, 1)

    def rows_within(self, milliseconds: float) -> int:
        """As many rows as take so long."""
        return int(milliseconds / 1e3 / self._row_s)
