"""How soon a blended answer begins, through the real engine, from memory and from disk.

Both tiers are warm in the sense of the machine: what the disk tier reads was written moments ago and
may lie in the page cache.  Every side runs once a round over the round's own documents, right after
a naive request that is not counted: so no way pays for the pages that the one before it gave back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from kdn import api
from kdn.bench.blend.arms import probe_rules
from kdn.bench.blend.prompts import BlendPrompt
from kdn.bench.common.measure import Samples, interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import Listener
from kdn.core import Blend, Prompt, Request, Retention, Sampling, Usage
from kdn.engine import kv_shape
from kdn.errors import BadInput, EngineFailed
from kdn.model import Document, Message
from kdn.reuse.blend import BlendRule
from kdn.store import open_store

__all__ = [
    "ANCHORS",
    "BLEND",
    "DISK",
    "FULL_TIME",
    "LAYER",
    "Timed",
    "longer",
    "time_ways",
]

FULL_TIME, PREFIX, NAIVE_TIME = "full prefill", "prefix reuse only", "naive"
BLEND, MORE, DISK = "blend 15 %", "blend 30 %", "blend 15 %, from disk"
LAYER, ANCHORS = "blend 15 %, one layer", "blend 15 %, anchors"
_RATIOS = {NAIVE_TIME: 0.0, BLEND: 0.15, MORE: 0.3, DISK: 0.15, LAYER: 0.15, ANCHORS: 0.15}
_NAMES = {
    "prefix": PREFIX,
    "naive": NAIVE_TIME,
    "ours": BLEND,
    "layer": LAYER,
    "anchors": ANCHORS,
    "more": MORE,
    "disk": DISK,
}
"""By the name on the command line."""


@dataclass
class Timed:
    """Seconds to the first token by way and round, and what became of the tokens."""

    num_tokens: float
    samples: Samples
    usages: dict[str, Usage]
    loaded_bytes: dict[str, int]
    dtype: str
    """What was computed in."""


def time_ways(
    options: BenchOptions,
    service: api.Kdn,
    questions: Sequence[BlendPrompt],
    rounds: int,
) -> Timed:
    """Interleaved rounds of a full prefill and of each way, after a warm-up that is not counted.

    The ways are those that `options.arms` names, or all.  Raises BadInput for a name that is none, and
    EngineFailed where the way from disk found nothing there.
    """
    ways = [FULL_TIME, *_chosen(options.arms)]
    with _from_disk(options, service) as cold:
        rules = probe_rules(service.model.name)
        stand = _Stand(
            options, service, cold, questions, {LAYER: rules["layer"], ANCHORS: rules["anchors"]}
        )
        sides: dict[str, Callable[[int], float]] = {
            way: partial(stand.settled_s, way) for way in ways
        }
        interleave(sides, 1)
        samples = interleave(sides, rounds, first=1)
    shape = kv_shape(service.model)
    loaded = {
        way: sum(usage.tiers.values()) * shape.token_bytes for way, usage in stand.usages.items()
    }
    if DISK in ways and not loaded[DISK]:
        raise EngineFailed("the way from disk loaded nothing: it was timed computing")
    sizes = [prompt.num_tokens for prompt in stand.prompts.values()]
    return Timed(sum(sizes) / len(sizes), samples, stand.usages, loaded, shape.dtype)


def _chosen(names: Sequence[str] | None) -> list[str]:
    unknown = set(names or ()) - _NAMES.keys()
    if unknown:
        raise BadInput(f"no way {min(unknown)!r} to time; there are {', '.join(_NAMES)}")
    return [way for name, way in _NAMES.items() if names is None or name in names]


@contextmanager
def _from_disk(options: BenchOptions, service: api.Kdn) -> Iterator[api.Kdn]:
    """The same model over the same folder, with no memory tier to speak of."""
    store = open_store(service.parts.config.store.folder, memory_bytes=0)
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
    rules: Mapping[str, BlendRule]
    """What chooses the rows, by way; kdn's default for ways that are not among them."""
    prompts: dict[int, Prompt] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)

    def settled_s(self, way: str, number: int) -> float:
        """Seconds to the first token, where a naive request has just ended."""
        self._first_token_s(NAIVE_TIME, number)
        return self._first_token_s(way, number)

    def _first_token_s(self, way: str, number: int) -> float:
        service = self.cold if way == DISK else self.warm
        request = self._request(way, number)
        listener = Listener(self.options.clock)
        with _ruled(service, self.rules.get(way)):
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


@contextmanager
def _ruled(service: api.Kdn, rule: BlendRule | None) -> Iterator[None]:
    """Rows are chosen by that rule meanwhile, where there is one."""
    blend = service.parts.blend
    usual = blend.rule
    blend.rule = rule or usual
    try:
        yield
    finally:
        blend.rule = usual


def longer(questions: Sequence[BlendPrompt]) -> list[BlendPrompt]:
    """Questions over nearly twice the documents: their own and most of the next one's."""
    others = [*questions[1:], questions[0]]
    return [
        replace(one, documents=(*one.documents, *other.documents[:6]))
        for one, other in zip(questions, others, strict=True)
    ]
