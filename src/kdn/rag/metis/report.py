"""What every answer carries: how it was made, why so, and what was foreseen beside what came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdn.rag.metis.configuration import (
    MAX_CHUNKS,
    ConfigurationSpace,
    Method,
    RagConfiguration,
)
from kdn.rag.metis.profile import QuestionProfile

__all__ = ["QueryReport"]


@dataclass(frozen=True)
class QueryReport:
    """How a question was answered. `profile` and `space` are None where nothing was to be chosen."""

    configuration: RagConfiguration | None
    """None where nothing was found to answer from."""
    profile: QuestionProfile | None = None
    space: ConfigurationSpace | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What did not go as it should: a profiler that failed, a library without documents."""
    num_chunks: int = 0
    """Chunks that were read: fewer than configured where fewer were found."""
    num_stored_tokens: int = 0
    """Of these chunks, tokens whose KV was stored before."""
    num_calls: int = 0
    profile_ms: float = 0.0
    predicted_ms: float | None = None
    took_ms: float = 0.0
    """From the choice to the last token."""
    predicted_bytes: int = 0
    """KV that was counted on, at most."""

    @staticmethod
    def of_stuffed(asked: int, num_chunks: int, took_ms: float) -> QueryReport:
        """Of an answer by one prompt, for which `asked` chunks were asked and `num_chunks` found."""
        configuration = RagConfiguration(Method.STUFF, min(asked, MAX_CHUNKS))
        return QueryReport(
            configuration,
            reasons=("the request names it",),
            num_chunks=num_chunks,
            num_calls=1,
            took_ms=took_ms,
        )

    def as_json(self) -> dict[str, Any]:
        """As `--json` and HTTP show it."""
        chosen, profile = self.configuration, self.profile
        return {
            "method": None if chosen is None else str(chosen.method),
            "num_chunks": self.num_chunks,
            "summary_tokens": 0 if chosen is None else chosen.summary_tokens,
            "num_calls": self.num_calls,
            "num_stored_tokens": self.num_stored_tokens,
            "profile": None if profile is None else _profile_json(profile),
            "space": None if self.space is None else str(self.space),
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "profile_ms": round(self.profile_ms, 3),
            "predicted_ms": None if self.predicted_ms is None else round(self.predicted_ms, 3),
            "took_ms": round(self.took_ms, 3),
            "predicted_bytes": self.predicted_bytes,
        }

    def lines(self) -> Iterator[str]:
        """For people: profile, space, choice and reasons, a line each."""
        if self.profile is not None:
            yield f"profile: {_profile_text(self.profile)}, in {self.profile_ms:.1f} ms"
        if self.space is not None:
            yield f"space: {self.space}"
        if self.configuration is not None:
            yield f"choice: {self.configuration}; {self.num_chunks} read, {self.num_calls} calls"
        for reason in self.reasons:
            yield f"because: {reason}"
        for note in self.notes:
            yield f"note: {note}"
        if self.predicted_ms is not None:
            yield f"time: {self.predicted_ms:.0f} ms foreseen, {self.took_ms:.0f} ms taken"


def _profile_json(profile: QuestionProfile) -> dict[str, Any]:
    return {
        "joint_reasoning": profile.is_joint,
        "complexity": "high" if profile.is_complex else "low",
        "pieces_of_information": profile.num_pieces,
        "summary_tokens": list(profile.summary_tokens),
        "confidence": round(profile.confidence, 4),
        "source": profile.source,
    }


def _profile_text(profile: QuestionProfile) -> str:
    joint = "joint reasoning" if profile.is_joint else "no joint reasoning"
    complexity = "high" if profile.is_complex else "low"
    low, high = profile.summary_tokens
    return (
        f"{joint}, {complexity} complexity, {profile.num_pieces} pieces of information, summaries of"
        f" {low}-{high} tokens; {profile.source} is {profile.confidence:.0%} sure"
    )
