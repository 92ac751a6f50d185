"""The time model of an open model: where it is kept, what stands in for it, how it is measured."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from kdn.clock import Clock
from kdn.core import (
    EXACT,
    Finish,
    JctModel,
    KvShape,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    TokenIds,
)
from kdn.cost import GRID, PACKED, JctSample, count_jct, fit_jct, jct_file, load_jct
from kdn.engine import Engine, EngineLimits
from kdn.errors import EngineFailed
from kdn.model import Decoder, LoadedModel
from kdn.model.attention import Attention
from kdn.reuse import PrefixReuse, Stack
from kdn.store import open_store

__all__ = ["JctMeter", "jct_path", "measure_jct", "stored_jct"]

_SCRATCH_BYTES = 1 << 30
_MOST_S = 1000.0
"""No pass, and nothing of one, takes longer."""
Point = tuple[int, int]
"""New and cached tokens of a prompt."""


def jct_path(decoder: Decoder, home: Path) -> Path:
    """The file that holds this model's fit on this device with this many threads."""
    return jct_file(home, decoder.fingerprint, str(decoder.device), torch.get_num_threads())


def stored_jct(decoder: Decoder, home: Path) -> JctModel:
    """The fit that was kept for this model here, or else a count of operations."""
    fitted = load_jct(jct_path(decoder, home))
    if fitted is not None and _is_plausible(fitted):
        return fitted
    config, shape = decoder.config, _shape(decoder)
    layer = sum(
        config.hidden_size * width
        for width in (2 * config.q_size, 2 * config.kv_size, 3 * config.intermediate_size)
    )
    return count_jct(layer * config.num_layers, config.q_size, shape)


def _is_plausible(model: JctModel) -> bool:
    """False for coefficients that no fit gives: a damaged file must not steer the queue."""
    parts = (model.pass_s, model.token_s, model.pair_s, model.cached_s, model.prompt_s)
    return all(0 <= part < _MOST_S for part in parts) and any(parts)


def measure_jct(
    model: LoadedModel,
    attention: Attention,
    clock: Clock,
    grid: Sequence[Point] = GRID,
    repeats: int = 3,
) -> JctModel:
    """The fit to so many rounds over the grid; see `JctMeter`."""
    with closing(JctMeter(model, attention, clock, grid)) as meter:
        for _ in range(repeats + 1):  # the first of each kind warms up
            meter.round()
        return meter.fit()


class JctMeter:
    """Measures passes of one-token prompts, one after the other, and fits the time of a prompt.

    Prompts run through an engine of their own, over a store that is thrown away.  Points beyond the
    model's context are left out.  Reused tokens come from the memory tier, and are put together again
    for every pass, as for a request that shares its prefix with no running one.
    """

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        clock: Clock,
        grid: Sequence[Point] = GRID,
        packed: Sequence[tuple[int, int, int]] = PACKED,
    ) -> None:
        most = model.decoder.config.max_position - 2
        points = [*((new, cached, 1) for new, cached in grid), *packed]
        self.points = [point for point in points if point[0] + point[1] <= most]
        self._probe = _Probe(model, attention, clock)
        self._seconds: dict[tuple[int, int, int], list[float]] = {p: [] for p in self.points}
        self._warm: set[tuple[int, int, int]] = set()

    def measure(self, point: tuple[int, int, int]) -> None:
        """One pass of the kind (new, cached, prompts); the first of each kind only warms up."""
        seconds = self._probe.seconds(*point)
        if point in self._warm and 0 < seconds < _MOST_S:  # else a clock was set
            self._seconds[point].append(seconds)
        self._warm.add(point)

    def round(self) -> None:
        """Every kind once."""
        for point in self.points:
            self.measure(point)

    def fit(self) -> JctModel:
        """The model of the medians so far. Raises BadInput when too little was measured."""
        return fit_jct(
            [
                JctSample(new, cached, statistics.median(seconds), prompts)
                for (new, cached, prompts), seconds in self._seconds.items()
                if seconds
            ]
        )

    def close(self) -> None:
        """End the engine and throw its store away."""
        self._probe.close()


class _Probe:
    """An engine that times prompts of random tokens."""

    def __init__(self, model: LoadedModel, attention: Attention, clock: Clock) -> None:
        decoder = model.decoder
        self._decoder = decoder
        self._store = open_store(None, memory_bytes=_SCRATCH_BYTES)
        prefix = PrefixReuse(self._store, _shape(decoder), lambda _: decoder.fingerprint)
        self._reuse = Stack([prefix])
        limits = EngineLimits(kv_bytes=_SCRATCH_BYTES, idle_prefix_bytes=0)
        self._engine = Engine(model, attention, self._reuse, limits, clock, threaded=False)
        self._clock = clock
        self._random = random.Random(0)
        self._vocabulary = range(min(decoder.config.vocab_size, 30_000))
        self._prefixes: dict[int, TokenIds] = {}
        self._serial = itertools.count()

    def seconds(self, num_new: int, num_cached: int, num_prompts: int = 1) -> float:
        """From handing the prompts over to having their tokens.

        A prompt that nothing is reused of is kept, as most are: that is part of its time.
        """
        if num_cached:
            prefix = self._stored(num_cached)
            tails = [self._tokens(num_new) for _ in range(num_prompts)]
            return self._run(prefix, tails, Retention.NOTHING)
        own = min(num_new // 2, 16)
        return self._run(self._tokens(num_new - own), [self._tokens(own)], Retention.SHARED)

    def close(self) -> None:
        self._engine.close()
        self._reuse.close()
        self._store.close()

    def _stored(self, num_tokens: int) -> TokenIds:
        prefix = self._prefixes.setdefault(num_tokens, self._tokens(num_tokens))
        name = self._decoder.fingerprint
        if self._store.match(name, EXACT, "", prefix).num_tokens < num_tokens:
            self._run(prefix, [self._tokens(1)], Retention.SHARED)
        return prefix

    def _tokens(self, count: int) -> TokenIds:
        return tuple(self._random.choices(self._vocabulary, k=count))

    def _run(self, prefix: TokenIds, tails: Sequence[TokenIds], retention: Retention) -> float:
        requests = [self._request(prefix, tail, retention) for tail in tails]
        started = self._clock.now()
        streams = [self._engine.submit(request) for request in requests]
        while self._engine.step():
            pass
        elapsed = self._clock.now() - started
        for stream in streams:
            finish = next(event for event in stream if isinstance(event, Finish))
            if retention is Retention.NOTHING and finish.usage.exact < len(prefix):
                raise EngineFailed(
                    f"{len(prefix)} tokens were stored, {finish.usage.exact} were found"
                )
        return elapsed

    def _request(self, prefix: TokenIds, tail: TokenIds, retention: Retention) -> Request:
        pieces = ((Role.DOCUMENT, prefix), (Role.QUESTION, tail))
        prompt = Prompt(tuple(Segment(role, ids) for role, ids in pieces if ids))
        sampling = Sampling(max_tokens=1, ignore_eos=True)
        return Request(f"probe-{next(self._serial)}", prompt, sampling, retention=retention)


def _shape(decoder: Decoder) -> KvShape:
    return decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
