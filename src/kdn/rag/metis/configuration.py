"""What can be chosen for a question: how parts are put together, how many, how long their summaries.

METIS (arXiv 2412.10543 v3, section 3) calls these knobs `synthesis_method`, `num_chunks` and
`intermediate_length`.  `extract` is ours: it quotes the best passage and asks no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from kdn.errors import BadInput
from kdn.machine.text import counted

__all__ = ["GOLDEN", "MAX_CHUNKS", "ConfigurationSpace", "Method", "RagConfiguration", "method_of"]

T = TypeVar("T")

MAX_CHUNKS = 35
"""The most parts that any configuration reads: the range of the paper's study."""


class Method(StrEnum):
    """How an answer is made of the parts that were found."""

    EXTRACT = "extract"
    """The best passage is quoted; no model is asked."""
    STUFF = "stuff"
    """All parts stand in one prompt."""
    MAP_RERANK = "map_rerank"
    """Each part is asked about alone; the answer that the model is surest of is given."""
    MAP_REDUCE = "map_reduce"
    """Each part is summarised with the question in view; the summaries are asked about."""


def method_of(name: str) -> Method:
    """The method of that name. Raises BadInput that lists them."""
    try:
        return Method(name)
    except ValueError:
        raise BadInput(f"the method is {name!r}; there are {', '.join(Method)}") from None


@dataclass(frozen=True)
class RagConfiguration:
    """One way to answer. `summary_tokens` is 0 unless the method is `map_reduce`."""

    method: Method
    num_chunks: int
    summary_tokens: int = 0
    places: tuple[int, ...] = ()
    """Which of the chunks found are read, in the order of reading; empty: the best ones, best first."""

    def __post_init__(self) -> None:
        """Raises BadInput for numbers that make no sense."""
        if not 1 <= self.num_chunks <= MAX_CHUNKS:
            raise BadInput(
                f"{counted(self.num_chunks, 'chunk')}; a configuration reads 1 to {MAX_CHUNKS}"
            )
        if self.places and len({p for p in self.places if p >= 0}) != self.num_chunks:
            raise BadInput(
                f"places {self.places} do not name {counted(self.num_chunks, 'chunk')} of those found, each"
                " once"
            )
        if (self.summary_tokens > 0) != (self.method is Method.MAP_REDUCE):
            raise BadInput(
                f"{self.method} with summaries of {counted(self.summary_tokens, 'token')}: map_reduce needs a"
                " length, other methods have none"
            )

    def __str__(self) -> str:
        summary = (
            f", summaries of {counted(self.summary_tokens, 'token')}" if self.summary_tokens else ""
        )
        places = ", ".join(str(place + 1) for place in self.places)
        which = f", of those found {places}" if places else ""
        return f"{self.method} over {counted(self.num_chunks, 'chunk')}{summary}{which}"

    def ordered(self, found: Sequence[T]) -> list[T]:
        """Those of `found` that are read, in the order in which they are read."""
        if not self.places:
            return list(found[: self.num_chunks])
        return [found[place] for place in self.places if place < len(found)]


GOLDEN = RagConfiguration(Method.MAP_REDUCE, 30, 300)
"""The expensive configuration that feedback is judged by (METIS, section 5)."""


@dataclass(frozen=True)
class ConfigurationSpace:
    """The configurations that are good enough for a question; ranges include both ends."""

    methods: frozenset[Method]
    min_chunks: int
    max_chunks: int
    min_summary_tokens: int
    max_summary_tokens: int

    def configurations(self) -> Iterator[RagConfiguration]:
        """Every configuration, by method, chunks and summaries; summaries in steps of 10 tokens."""
        lengths = [*range(self.min_summary_tokens, self.max_summary_tokens, 10)]
        lengths.append(self.max_summary_tokens)
        for method in sorted(self.methods):
            for chunks in range(self.min_chunks, self.max_chunks + 1):
                if method is Method.MAP_REDUCE:
                    for length in lengths:
                        yield RagConfiguration(method, chunks, length)
                else:
                    yield RagConfiguration(method, chunks)

    def median(self) -> RagConfiguration:
        """The middle of the space: what the paper's ablation runs without looking at memory."""
        found = list(self.configurations())
        return found[len(found) // 2]

    def within(self, num_chunks: int) -> ConfigurationSpace:
        """The space where only so many chunks were found, at least one."""
        most = max(min(self.max_chunks, num_chunks), 1)
        return ConfigurationSpace(
            self.methods,
            min(self.min_chunks, most),
            most,
            self.min_summary_tokens,
            self.max_summary_tokens,
        )

    def __str__(self) -> str:
        methods = " or ".join(sorted(self.methods))
        summaries = ""
        if Method.MAP_REDUCE in self.methods:
            summaries = f", summaries of {self.min_summary_tokens}-{self.max_summary_tokens} tokens"
        return f"{methods}, {self.min_chunks}-{self.max_chunks} chunks{summaries}"
