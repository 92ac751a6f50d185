"""From a question and parts to the pieces of a prompt, and from an answer back to its sources."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdn.core import Role
from kdn.rag.cut import Passage
from kdn.rag.results import Part

__all__ = [
    "AnswerPiece",
    "Citation",
    "answer_instruction",
    "answer_pieces",
    "cite",
    "is_unknown",
    "words_of",
]

_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
_STOP_WORDS = """
    a an and are as at be been but by can could did do does for from had has have he her his how i
    if in into is it its may might more most no nor not of on or our own she should so some such
    than that the their them then there these they this those to too under up was we were what when
    where which while who whom why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_UNKNOWN = re.compile(r"\b(?:do not|don't|does not|doesn't) (?:know|say)\b", re.IGNORECASE)
_HIT_WEIGHT = 0.25


@dataclass(frozen=True)
class AnswerPiece:
    """A run of prompt text with its role; `source` is the key of the part it is, if it is one."""

    role: Role
    text: str
    source: str | None = None


@dataclass(frozen=True)
class Citation:
    """A passage that supports an answer; `score` in 0..1 is how much of the answer it holds."""

    passage: Passage
    score: float


def answer_instruction() -> str:
    """What a small model is told after the documents: short and plain works best."""
    return (
        "Answer the question from the text above, in one to three sentences."
        " If the answer is not there, say you do not know."
    )


def answer_pieces(question: str, parts: Sequence[Part]) -> list[AnswerPiece]:
    """The prompt in order: the documents as given, then the instruction, then the question.

    Nothing of the job stands before the documents, so that their KV serves every question.
    """
    documents = [AnswerPiece(Role.DOCUMENT, part.text, part.key) for part in parts]
    return [
        *documents,
        AnswerPiece(Role.INSTRUCTION, answer_instruction() + "\n\n"),
        AnswerPiece(Role.QUESTION, f"Question: {question.strip()}"),
    ]


def cite(answer: str, parts: Sequence[Part], most: int = 3) -> list[Citation]:
    """The passages that best support `answer`, best first, down to half the score of the best.

    A passage is worth the share of the answer's words that it holds, rare words counting more, and
    something if the question had found it.  Nothing is cited for "I do not know", nor for an answer
    that shares no word with any passage.
    """
    if is_unknown(answer):
        return []
    passages = list({passage.key: passage for part in parts for passage in part.passages}.values())
    asked = words_of(answer)
    weights = _weights(asked, [words_of(passage.index_text) for passage in passages])
    found = _hit_scores(parts)
    cited: list[Citation] = []
    for passage in passages:
        shared = asked & words_of(passage.index_text)
        overlap = sum(weights[word] for word in shared) / (sum(weights.values()) or 1.0)
        if overlap > 0:
            score = (1 - _HIT_WEIGHT) * overlap + _HIT_WEIGHT * found.get(passage.key, 0.0)
            cited.append(Citation(passage, score))
    cited.sort(key=lambda citation: -citation.score)
    return [c for c in cited[:most] if c.score >= 0.5 * cited[0].score]


def is_unknown(answer: str) -> bool:
    """Does the answer say that it is not known?"""
    return _UNKNOWN.search(answer) is not None


def words_of(text: str) -> frozenset[str]:
    """Words that carry meaning, in lower case, without a plural's s."""
    words = (word.lower() for word in _WORD.findall(text))
    return frozenset(_singular(word) for word in words if word not in _STOP)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _weights(asked: frozenset[str], texts: Sequence[frozenset[str]]) -> dict[str, float]:
    """ln(1 + passages / passages that hold the word), for words that any passage holds."""
    counts = Counter(word for text in texts for word in text & asked)
    return {word: math.log(1 + len(texts) / count) for word, count in counts.items()}


def _hit_scores(parts: Iterable[Part]) -> dict[str, float]:
    """Search scores of passages, the best of them 1."""
    scores = {hit.passage.key: hit.score for part in parts for hit in part.hits}
    best = max(scores.values(), default=0.0)
    return {key: score / best for key, score in scores.items()} if best > 0 else {}
