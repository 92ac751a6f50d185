"""New knowledge that no model can have: invented harbours, with a question about each in two wordings."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

__all__ = ["Fact", "document", "invent", "judge"]

_FIRST = ("Or", "Til", "Ves", "Quo", "Bra", "Nim", "Dal", "Jor", "Kel", "Mav")
_LAST = ("vane", "mar", "sund", "lith", "wick", "nora", "fjell", "tova", "gate", "holm")
_PEOPLE = ("Ada Fenn", "Ivo Marsh", "Lena Holt", "Otto Brandt", "Mira Sole", "Jonas Pike")
_KINDS = (
    ("The harbour master of {place} is {value}.", "Who is the harbour master of {place}?",
     "What is the name of {place}'s harbour master?"),
    ("The lighthouse of {place} was built in {value}.", "In which year was the lighthouse of {place} built?",
     "When was {place}'s lighthouse built?"),
    ("The ferry to {place} leaves from pier {value}.", "From which pier does the ferry to {place} leave?",
     "Which pier must I go to for the ferry to {place}?"),
)  # fmt: skip
_BETWEEN = (
    "Boats come in with the tide, and the market opens when they are tied up.",
    "In winter the quay is quiet, and only the pilots go out.",
    "Visitors are asked to keep off the breakwater while nets are drying.",
)


@dataclass(frozen=True)
class Fact:
    """A sentence, a question to learn from and another to be asked, and the answer."""

    sentence: str
    question: str
    asked: str
    answer: str


def invent(count: int, seed: int) -> list[Fact]:
    """Facts about as many different places."""
    rng = random.Random(seed)
    places = [first + last for first in _FIRST for last in _LAST]
    return [_fact(place, n, rng) for n, place in enumerate(rng.sample(places, count))]


def document(facts: list[Fact]) -> str:
    """The text that says it all, with sentences between that say nothing."""
    lines = [f"{fact.sentence} {_BETWEEN[n % len(_BETWEEN)]}" for n, fact in enumerate(facts)]
    return "\n".join(lines)


def judge(answer: str, gold: str) -> tuple[float, float]:
    """Whether the answer has the gold words in a row, and F1 over its first line's words."""
    said, wanted = _words(answer.strip().split("\n")[0]), _words(gold)
    found = f" {' '.join(wanted)} " in f" {' '.join(said)} "
    common = sum((Counter(said) & Counter(wanted)).values())
    f1 = 2 * common / (len(said) + len(wanted)) if said else 0.0
    return float(found), f1


def _fact(place: str, number: int, rng: random.Random) -> Fact:
    kind = number % len(_KINDS)
    values = (rng.choice(_PEOPLE), str(rng.randint(1801, 1999)), str(rng.randint(2, 98)))
    sentence, question, asked = (
        text.format(place=place, value=values[kind]) for text in _KINDS[kind]
    )
    return Fact(sentence, question, asked, values[kind])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
