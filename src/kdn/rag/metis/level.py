"""How well a model answers where retrieval was right: below a measured level a quoted passage is better.

`scripts/rag_answers.py` gives a model the passage that holds the answer, and counts how often its own
answer holds it too.  On the same questions a quoted passage holds it always: retrieval was right.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RIGHT_ENOUGH", "AnswerLevel", "answer_level"]

RIGHT_ENOUGH = 0.75
"""A model that answers rightly less often quotes by default."""


@dataclass(frozen=True)
class AnswerLevel:
    """The share of questions that a model answers rightly from the right passage."""

    right: float
    num_questions: int

    @property
    def is_enough(self) -> bool:
        return self.right >= RIGHT_ENOUGH


_MEASURED = {"smollm2-135m": AnswerLevel(right=0.38, num_questions=60)}
"""By the model's name."""


def answer_level(model: str) -> AnswerLevel | None:
    """What was measured of a model that goes by that name; None for one that was not."""
    return _MEASURED.get(model)
