"""What a question needs, said by one of several profilers: the seam, the rules, and the oracle.

A profiler sees the question and a line about the library, never the retrieved text (METIS, arXiv
2412.10543 v3, section 4.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from kdn.errors import BadInput, ProfileFailed
from kdn.machine.text import counted

__all__ = [
    "MAX_PIECES",
    "MAX_SUMMARY_TOKENS",
    "MIN_SUMMARY_TOKENS",
    "LibraryNote",
    "OracleProfiler",
    "Profiler",
    "QuestionProfile",
    "RuleProfiler",
]

MAX_PIECES = 10
MIN_SUMMARY_TOKENS, MAX_SUMMARY_TOKENS = 30, 200
"""The paper's ranges."""


@dataclass(frozen=True)
class QuestionProfile:
    """What a question needs. Raises BadInput for values outside of the paper's ranges."""

    is_joint: bool
    """Must several pieces be reasoned over together?"""
    is_complex: bool
    num_pieces: int
    """Pieces of information that an answer needs, 1 to 10."""
    summary_tokens: tuple[int, int]
    """The shortest and the longest useful summary of a chunk, within 30 to 200."""
    confidence: float = 1.0
    """0 to 1: how sure the profiler is of all of this."""
    source: str = "given"
    """The profiler's name."""

    def __post_init__(self) -> None:
        low, high = self.summary_tokens
        if not 1 <= self.num_pieces <= MAX_PIECES:
            raise BadInput(f"{self.num_pieces} pieces of information; a profile has 1 to 10")
        if not MIN_SUMMARY_TOKENS <= low <= high <= MAX_SUMMARY_TOKENS:
            raise BadInput(
                f"summaries of {low} to {counted(high, 'token')}; a profile's lie within 30 to 200"
            )
        if not 0 <= self.confidence <= 1:
            raise BadInput(f"a confidence of {self.confidence}; it is a share, 0 to 1")


@dataclass(frozen=True)
class LibraryNote:
    """What a profiler is told of the documents."""

    about: str
    """One sentence."""
    chunk_tokens: int


class Profiler(Protocol):
    """Says what a question needs."""

    @property
    def name(self) -> str: ...

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        """The question's profile. Raises ProfileFailed when there is none."""


class OracleProfiler:
    """Knows the right profile of each question: for tests, and as the best that a profiler can be."""

    name = "oracle"

    def __init__(self, known: Mapping[str, QuestionProfile]) -> None:
        self._known = dict(known)

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        if question not in self._known:
            raise ProfileFailed(f"the oracle does not know the question {question!r:.80}")
        return self._known[question]


_SUMMARY = re.compile(
    r"\b(?:summari[sz]e|overview|outline|discuss(?:ed|ion)?|describe|explain|opinions?|think"
    r"|talk(?:ed)? about|thoughts?|views?|main (?:points?|ideas?)|whole|pros and cons)\b",
    re.IGNORECASE,
)
_COMPARISON = re.compile(
    r"\b(?:compare[ds]?|comparison|versus|vs|differ(?:s|ence|ences|ent)?|both|between|either|same"
    r"|than|changed?|trends?|over time|across|over the (?:past|last|years?)|evol(?:ve[ds]?|ution)"
    r"|increase[ds]?|decrease[ds]?|grow(?:n|th)?|relationship|correlat\w+)\b",
    re.IGNORECASE,
)
_WHY = re.compile(r"\b(?:why|how (?:did|does|do|has|have|is|are|can|would|might))\b", re.IGNORECASE)
_LINK = re.compile(
    r"\b(?:whose|which .+ (?:that|who|which)|of the .+ (?:that|who|which|of)|(?:that|who|which)"
    r" (?:was|is|were|are|has|had|\w+ed))\b"
    r"|'s (?:\w+ )?(?:mother|father|wife|husband|spouse|director|author|performer|founder|child)",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?<![.?!]\s)(?<!^)\b[A-Z][\w'\u2019-]*(?:\s+(?:of\s+|the\s+)?[A-Z][\w'\u2019-]*)*"
)
_MANY = re.compile(r"\b(?:list|all|each|every|several|various|multiple)\b", re.IGNORECASE)


class RuleProfiler:
    """Reads the question's words: comparisons and chains of relations are joint, discussions are long.

    It costs microseconds, and is what every other profiler falls back to.
    """

    name = "rules"

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        summary = _SUMMARY.search(question) is not None
        compared = _COMPARISON.search(question) is not None
        reasons = _WHY.search(question) is not None
        linked = len(_LINK.findall(question))
        names = len(set(_NAME.findall(question)))
        is_joint = summary or compared or linked > 0 or names >= 3
        is_complex = summary or (compared and (reasons or _MANY.search(question) is not None))
        pieces = 1
        if is_joint:
            pieces = 4 if summary else 1 + max(linked, 1, min(names, 3) - 1)
        return QuestionProfile(
            is_joint=is_joint,
            is_complex=is_complex,
            num_pieces=pieces,
            summary_tokens=(60, 150) if summary else (30, 80),
            # A cue that was met says more than the absence of all cues.
            confidence=0.95 if summary or compared or linked else 0.9,
            source=self.name,
        )
