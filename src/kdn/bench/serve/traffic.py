"""Loads: which prompts come when. Equal seeds give equal loads, however they are answered."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import msgspec

__all__ = [
    "LoadAnswer",
    "LoadRequest",
    "LoadResult",
    "OfferedLoad",
    "TrafficShape",
    "make_load",
]

_LOWEST = 100
"""Special tokens come first in most vocabularies."""


class LoadRequest(msgspec.Struct, frozen=True):
    """One prompt, and when it is sent."""

    at_s: float
    """After the beginning of the load."""
    prompt: list[int]
    max_tokens: int


class OfferedLoad(msgspec.Struct, frozen=True):
    """What the generator is told on its standard input."""

    requests: list[LoadRequest]
    url: str = ""
    model: str = ""
    extra: dict[str, object] = {}
    """Fields that every body has besides."""


class LoadAnswer(msgspec.Struct, frozen=True):
    """One request's fate, in the generator's seconds."""

    sent_s: float
    first_s: float = 0.0
    last_s: float = 0.0
    num_tokens: int = 0
    error: str = ""


class LoadResult(msgspec.Struct, frozen=True):
    """What became of a load: the generator's standard output."""

    answered: list[LoadAnswer]

    @property
    def good(self) -> list[LoadAnswer]:
        """Those that were answered."""
        return [one for one in self.answered if not one.error]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(one.last_s for one in self.good) - min(one.sent_s for one in self.answered)

    @property
    def requests_per_s(self) -> float:
        """Answers by the whole time."""
        return len(self.good) / self.seconds

    @property
    def first_token_s(self) -> list[float]:
        """By answer: how long its first token took."""
        return [one.first_s - one.sent_s for one in self.good]

    @property
    def token_s(self) -> list[float]:
        """By answer of several tokens: seconds a token after the first."""
        return [
            (one.last_s - one.first_s) / (one.num_tokens - 1)
            for one in self.good
            if one.num_tokens > 1
        ]


@dataclass(frozen=True)
class TrafficShape:
    """What prompts of a load are like."""

    name: str
    num_tokens: tuple[int, int]
    """The shortest and the longest prompt, shared part left out; lengths between are drawn evenly by their
    logarithm."""
    answer_tokens: tuple[int, int]
    num_documents: int = 0
    """Texts that prompts begin with; the second is used half as often as the first, and so on (Zipf)."""
    document_tokens: int = 0


def make_load(
    shape: TrafficShape,
    count: int,
    rate: float | None,
    vocab_size: int,
    seed: str,
    reader: str = "",
) -> list[LoadRequest]:
    """`count` requests that arrive as a Poisson process of `rate` a second; None sends all at once.

    Loads of equal seed for two readers have other tokens, and the same lengths, times and documents.
    The texts of documents depend on the shape alone, so that loads after each other share them.
    """
    rng, text = random.Random(f"{seed}/{shape.name}"), random.Random(f"{seed}/{reader}")
    documents = [
        _tokens(random.Random(f"{shape.name}/{i}"), shape.document_tokens, vocab_size)
        for i in range(shape.num_documents)
    ]
    weights = [1 / (i + 1) for i in range(shape.num_documents)]
    requests, at_s = [], 0.0
    for _ in range(count):
        shared = rng.choices(documents, weights)[0] if documents else []
        own = _tokens(text, _between(rng, shape.num_tokens), vocab_size)
        requests.append(LoadRequest(at_s, shared + own, _between(rng, shape.answer_tokens)))
        if rate is not None:
            at_s += rng.expovariate(rate)
    return requests


def _between(rng: random.Random, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return low if low == high else round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    lowest = min(_LOWEST, vocab_size // 2)
    return [rng.randrange(lowest, vocab_size) for _ in range(count)]
