"""Feedback from the golden configuration: now and then an expensive answer shows what was missed.

METIS (arXiv 2412.10543 v3, section 5): every 30th query also runs `map_reduce` over 30 chunks with
summaries of 300 tokens; its answer is shown to the profiler, which says what profile it should have
given; the last four of these examples stand in front of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kdn.rag.metis.profile import LibraryNote, QuestionProfile

__all__ = [
    "EVERY",
    "NUM_EXAMPLES",
    "FeedbackSchedule",
    "LearningProfiler",
    "ProfileExample",
]

EVERY = 30
NUM_EXAMPLES = 4


@dataclass(frozen=True)
class ProfileExample:
    """A question, and the profile that its golden answer calls for."""

    question: str
    profile: QuestionProfile


@runtime_checkable
class LearningProfiler(Protocol):
    """A profiler that can be shown a golden answer."""

    @property
    def name(self) -> str: ...

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile: ...

    def learn(self, question: str, golden_answer: str, note: LibraryNote) -> ProfileExample | None:
        """Work out the better profile from the answer, and remember it; None when that failed."""


class FeedbackSchedule:
    """Says which queries run the golden configuration too."""

    def __init__(self, every: int = EVERY) -> None:
        self._every = every
        self._count = 0

    def is_due(self) -> bool:
        """Call once a query: true for every 30th."""
        self._count += 1
        return self._count % self._every == 0
