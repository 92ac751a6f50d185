"""The time model of an open model: where it is kept, what stands in for it, how it is measured."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from kdn.clock import Clock
from kdn.core import (
    EXACT,
    Finish,
    JctModel,
    Keeping,
    KvShape,
    Prompt,
    Request,
    Role,
    Sampling,
    Segment,
    TokenIds,
)
from kdn.cost import GRID, count_jct, fit_jct, jct_file, load_jct, measure_grid
from kdn.engine import Engine, Limits
from kdn.errors import EngineFailed
from kdn.model import Decoder, LoadedModel
from kdn.model.attention import Attention
from kdn.reuse import PrefixReuse
from kdn.store import open_store

__all__ = ["jct_path", "measure_jct", "stored_jct"]

_SCRATCH_BYTES = 1 << 30


def jct_path(decoder: Decoder, home: Path) -> Path:
    """The file that holds this model's fit on this device with this many threads."""
    return jct_file(home, decoder.fingerprint, str(decoder.device), torch.get_num_threads())


def stored_jct(decoder: Decoder, home: Path) -> JctModel:
    """The fit that was kept for this model here, or else a count of operations."""
    fitted = load_jct(jct_path(decoder, home))
    if fitted is not None:
        return fitted
    config, shape = decoder.config, _shape(decoder)
    layer = sum(
        config.hidden_size * width
        for width in (2 * config.q_size, 2 * config.kv_size, 3 * config.intermediate_size)
    )
    return count_jct(layer * config.num_layers, config.q_size, shape)


def measure_jct(
    model: LoadedModel,
    attention: Attention,
    clock: Clock,
    grid: Sequence[tuple[int, int]] = GRID,
    repeats: int = 3,
) -> JctModel:
    """Prompts of one token through an engine of their own, over a store that is thrown away.

    Points beyond the model's context are left out.  Reused tokens come from the memory tier, and are
    put together anew for every prompt, as for a request that shares its prefix with no running one.
    """
    most = model.decoder.config.max_position - 2
    points = [(new, cached) for new, cached in grid if new + cached <= most]
    probe = _Probe(model, attention, clock)
    try:
        for new, cached in points:
            probe.seconds(new, cached)  # the first of each kind warms up
        return fit_jct(measure_grid(probe.seconds, points, repeats))
    finally:
        probe.close()


class _Probe:
    """An engine that times prompts of random tokens."""

    def __init__(self, model: LoadedModel, attention: Attention, clock: Clock) -> None:
        decoder = model.decoder
        self._decoder = decoder
        self._store = open_store(None, memory_bytes=_SCRATCH_BYTES)
        self._reuse = PrefixReuse(self._store, _shape(decoder), lambda _: decoder.fingerprint)
        limits = Limits(kv_bytes=_SCRATCH_BYTES, idle_head_bytes=0)
        self._engine = Engine(model, attention, self._reuse, limits, clock, threaded=False)
        self._clock = clock
        self._random = random.Random(0)
        self._vocabulary = range(min(decoder.config.vocab_size, 30_000))
        self._prefixes: dict[int, TokenIds] = {}
        self._serial = itertools.count()

    def seconds(self, num_new: int, num_cached: int) -> float:
        """From handing the prompt over to having its token.

        A prompt that nothing is reused of is kept, as most are: that is part of its time.
        """
        if num_cached:
            prefix = self._stored(num_cached)
            return self._run(prefix, self._tokens(num_new), Keeping.NOTHING)
        own = min(num_new // 2, 16)
        return self._run(self._tokens(num_new - own), self._tokens(own), Keeping.SHARED)

    def close(self) -> None:
        self._engine.close()
        self._reuse.close()
        self._store.close()

    def _stored(self, num_tokens: int) -> TokenIds:
        prefix = self._prefixes.setdefault(num_tokens, self._tokens(num_tokens))
        name = self._decoder.fingerprint
        if self._store.match(name, EXACT, "", prefix).num_tokens < num_tokens:
            self._run(prefix, self._tokens(1), Keeping.SHARED)
        return prefix

    def _tokens(self, count: int) -> TokenIds:
        return tuple(self._random.choices(self._vocabulary, k=count))

    def _run(self, prefix: TokenIds, rest: TokenIds, keeping: Keeping) -> float:
        pieces = ((Role.DOCUMENT, prefix), (Role.QUESTION, rest))
        prompt = Prompt(tuple(Segment(role, ids) for role, ids in pieces if ids))
        name = f"probe-{next(self._serial)}"
        started = self._clock.now()
        sampling = Sampling(max_tokens=1, ignore_eos=True)
        stream = self._engine.submit(Request(name, prompt, sampling, keeping=keeping))
        while self._engine.step():
            pass
        elapsed = self._clock.now() - started
        finish = next(event for event in stream if isinstance(event, Finish))
        if keeping is Keeping.NOTHING and finish.usage.exact < len(prefix):
            raise EngineFailed(f"{len(prefix)} tokens were stored, {finish.usage.exact} were found")
        return elapsed


def _shape(decoder: Decoder) -> KvShape:
    return decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
