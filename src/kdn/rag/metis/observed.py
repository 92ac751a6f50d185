"""What queries took lately: by it delays are foreseen, and memory and time are held back.

Everything is a median or a mean of the last few; times come in as arguments.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kdn.core import JctModel, Usage

__all__ = ["Observed", "RunningQueries", "row_seconds"]

_REMEMBERED = 32
_FEWEST = 3
"""Fewer answers than this say nothing yet."""
_ANSWER_TOKENS = 48.0
"""How long answers are until some have come."""


class Observed:
    """Arrivals, answer lengths, decode steps and how right the time model was. Thread-safe."""

    def __init__(self, jct: JctModel) -> None:
        self._jct = jct
        self._lock = threading.Lock()
        self._arrivals: deque[float] = deque(maxlen=_REMEMBERED)
        self._answers: deque[int] = deque(maxlen=_REMEMBERED)
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._rows: deque[float] = deque(maxlen=_REMEMBERED)
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED)
        self._bytes: deque[int] = deque(maxlen=_REMEMBERED)

    def arrived(self, now_s: float) -> None:
        """A query came."""
        with self._lock:
            self._arrivals.append(now_s)

    def answered(self, usage: Usage) -> None:
        """A call is over: its length."""
        with self._lock:
            self._answers.append(usage.completion_tokens)

    def decoded(self, stage: Sequence[Usage]) -> None:
        """Calls that ran side by side, and nothing beside them: the time of their decode steps."""
        step_s = self.step_s()
        with self._lock:
            if len(stage) == 1 and stage[0].completion_tokens > 1:
                self._steps.append(_decode_s(stage[0]) / (stage[0].completion_tokens - 1))
            row_s = row_seconds(stage, step_s, self._jct.column_s)
            if row_s is not None:
                self._rows.append(row_s)

    def took(self, foreseen_s: float, seconds: float, total_bytes: int) -> None:
        """A query that nothing ran beside is over; the time model alone had foreseen `foreseen_s`."""
        with self._lock:
            self._bytes.append(total_bytes)
            if foreseen_s > 0 and seconds > 0:
                self._ratios.append(seconds / foreseen_s)

    def per_s(self, now_s: float) -> float:
        """Arrivals a second, lately; 0 until a few have come. A pause counts as it grows."""
        with self._lock:
            if len(self._arrivals) < _FEWEST:
                return 0.0
            span = max(now_s - self._arrivals[0], 1e-9)
            return (len(self._arrivals) - 1) / span

    def answer_tokens(self) -> float:
        """How long a call's answer is."""
        with self._lock:
            known = len(self._answers) >= _FEWEST
            return statistics.fmean(self._answers) if known else _ANSWER_TOKENS

    def step_s(self) -> float:
        """One decode step of one sequence."""
        with self._lock:
            known = len(self._steps) >= _FEWEST
            return statistics.median(self._steps) if known else self._jct.seconds(1)

    def row_s(self) -> float | None:
        """What a further sequence adds to a decode step; None until it is known."""
        with self._lock:
            known = len(self._rows) >= _FEWEST
            return statistics.median(self._rows) if known else None

    def slowdown(self) -> float:
        """How many times longer than foreseen queries take."""
        with self._lock:
            known = len(self._ratios) >= _FEWEST
            return statistics.median(self._ratios) if known else 1.0

    def mean_bytes(self) -> int:
        """What a query took of memory."""
        with self._lock:
            return round(statistics.fmean(self._bytes)) if self._bytes else 0


def row_seconds(stage: Sequence[Usage], step_s: float, column_s: float) -> float | None:
    """What a further sequence has added to each decode step of calls that ran side by side.

    The longest has taken a step for each of its tokens, and a row with its columns for each token of the
    others.
    """
    *others, longest = sorted(stage, key=lambda usage: usage.completion_tokens)
    steps = longest.completion_tokens - 1
    rows = sum(usage.completion_tokens - 1 for usage in others)
    columns = sum((usage.completion_tokens - 1) * usage.prompt_tokens for usage in others)
    left_s = _decode_s(longest) - steps * step_s - columns * column_s
    return max(left_s, 0.0) / rows if rows > 0 else None


def _decode_s(usage: Usage) -> float:
    return (usage.total_ms - usage.ttft_ms) / 1000


@dataclass(frozen=True)
class _Running:
    ends_s: float
    later_bytes: int


class RunningQueries:
    """Queries between choice and answer: the work and the memory that they will still take.

    The engine knows of requests that were submitted; what a query submits later, its last step, is
    known here only.  Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, query: str, now_s: float, predicted_s: float, later_bytes: int) -> None:
        """A query begins, which is foreseen to end after `predicted_s`."""
        with self._lock:
            self._running[query] = _Running(now_s + predicted_s, later_bytes)

    def end(self, query: str) -> None:
        """A query is over, however it ended. Harmless for one that is not running."""
        with self._lock:
            self._running.pop(query, None)

    def later_bytes(self) -> int:
        """Memory of last steps that have not been submitted, for the worst case."""
        with self._lock:
            return sum(one.later_bytes for one in self._running.values())

    def ahead_s(self, now_s: float) -> float:
        """Seconds until the last of them is foreseen to end."""
        with self._lock:
            return max([0.0, *(one.ends_s - now_s for one in self._running.values())])
