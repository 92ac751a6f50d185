"""How soon a blended answer begins, through the real engine, from memory and from disk.

Both tiers are warm in the sense of the machine: what the disk tier reads was written moments ago and
may lie in the page cache.  Every side runs once a round over the round's own documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from kdn import api
from kdn.bench.blend.prompts import BlendPrompt
from kdn.bench.common.measure import Samples, interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import Listener
from kdn.core import Blend, Prompt, Request, Retention, Sampling, Usage
from kdn.model import Document, Message
from kdn.store import open_store

__all__ = [
    "BLEND",
    "DISK",
    "FULL_TIME",
    "MORE",
    "NAIVE_TIME",
    "PREFIX",
    "Timed",
    "longer",
    "time_ways",
]

FULL_TIME, PREFIX, NAIVE_TIME = "full prefill", "prefix reuse only", "naive"
BLEND, MORE, DISK = "blend 15 %", "blend 30 %", "blend 15 %, from disk"
_RATIOS = {NAIVE_TIME: 0.0, BLEND: 0.15, MORE: 0.3, DISK: 0.15}


@dataclass
class Timed:
    """Seconds to the first token by way and round, and what became of the tokens."""

    num_tokens: float
    samples: Samples
    usages: dict[str, Usage]
    loaded_bytes: dict[str, int]


def time_ways(
    options: BenchOptions,
    service: api.Kdn,
    questions: Sequence[BlendPrompt],
    rounds: int,
    folder: Path,
) -> Timed:
    """Interleaved rounds of every way, the first of them a warm-up that is not counted."""
    with _from_disk(options, service, folder) as cold:
        stand = _Stand(options, service, cold, questions)
        ways = (FULL_TIME, PREFIX, NAIVE_TIME, BLEND, MORE, DISK)
        sides: dict[str, Callable[[int], float]] = {
            way: partial(stand.first_token_s, way) for way in ways
        }
        interleave(sides, 1)
        samples = interleave(sides, rounds, first=1)
    shape = service.model.decoder.config.kv_shape(
        str(service.model.decoder.dtype).removeprefix("torch.")
    )
    loaded = {
        way: sum(usage.tiers.values()) * shape.token_bytes for way, usage in stand.usages.items()
    }
    sizes = [prompt.num_tokens for prompt in stand.prompts.values()]
    return Timed(sum(sizes) / len(sizes), samples, stand.usages, loaded)


@contextmanager
def _from_disk(options: BenchOptions, service: api.Kdn, folder: Path) -> Iterator[api.Kdn]:
    """The same model over the same folder, with no memory tier to speak of."""
    store = open_store(folder, memory_bytes=0)
    other = api.over(service.parts, store, options.clock, service.trace)
    try:
        yield other
    finally:
        other.close()


@dataclass
class _Stand:
    """Runs one way of one round; documents are computed and written out before the first."""

    options: BenchOptions
    warm: api.Kdn
    cold: api.Kdn
    questions: Sequence[BlendPrompt]
    prompts: dict[int, Prompt] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)

    def first_token_s(self, way: str, number: int) -> float:
        service = self.cold if way == DISK else self.warm
        request = self._request(way, number)
        listener = Listener(self.options.clock)
        started = self.options.clock.now()
        service.submit(request).on_event(listener)
        self.usages[way] = listener.wait()
        return listener.times_s[0] - started

    def _request(self, way: str, number: int) -> Request:
        prompt = self.prompts.get(number) or self._prepare(number)
        ratio = _RATIOS.get(way)
        return Request(
            id=f"{way} {number}",
            prompt=prompt,
            sampling=Sampling(max_tokens=1, ignore_eos=True),
            reuse=way != FULL_TIME,
            techniques=(Blend(ratio),) if ratio is not None else (),
            retention=Retention.NOTHING,
        )

    def _prepare(self, number: int) -> Prompt:
        asked = self.questions[number % len(self.questions)]
        for text in asked.documents:
            self.warm.prefill(text)
        self.warm.store.flush()
        turns = [Message("system", asked.instruction), Message("user", asked.question)]
        documents = [Document(None, text) for text in asked.documents]
        self.prompts[number] = self.warm.prompts.segments(turns, documents)
        return self.prompts[number]


def longer(questions: Sequence[BlendPrompt]) -> list[BlendPrompt]:
    """Questions over nearly twice the documents: their own and most of the next one's."""
    others = [*questions[1:], questions[0]]
    return [
        replace(one, documents=(*one.documents, *other.documents[:6]))
        for one, other in zip(questions, others, strict=True)
    ]
