"""Blending as a planner: exact reuse where that is asked or enough, mended chunks elsewhere.

    prompt ─> exact prefix ─> stored documents behind it ─> ratio ─> rule ─> plan
                                     │ lacking ones
                                     └─> lessons: prefilled alone behind the prelude, later

Nothing that a blended pass computes is stored: every value behind the first mended chunk is tainted,
and a tainted block would serve no other prompt.  What the store learns from a blended prompt are its
documents, each computed alone behind the neutral prelude, so that the next prompt finds them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

from kdn.clock import Clock
from kdn.core import (
    ALL_ROWS,
    EXACT,
    Cause,
    Fingerprint,
    KvShape,
    Planned,
    Planner,
    Prompt,
    Recipe,
    Request,
    RetainedKV,
    RetainedPrefix,
    Retention,
    Role,
    Sampling,
    Segment,
    StoredRun,
)
from kdn.reuse.blend.asking import AskedRows
from kdn.reuse.blend.chunks import Chunk, Shelf
from kdn.reuse.blend.controller import Controller, Stopwatch
from kdn.reuse.blend.drift import BiasCorrected, Drift
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.rules import Rule
from kdn.reuse.source import StoreSource, loaded_bytes
from kdn.store import Store
from kdn.trace import NoTrace, Trace

__all__ = ["BLENDED", "BlendReuse"]

BLENDED = Recipe((Cause.BLEND,))
"""The recipe of whatever is computed behind a mended chunk."""


class BlendReuse:
    """Plans requests that ask for blending, and hands all others to `exact`.

    `on_plan` is told of every request that asks for blending, each time it is planned.
    `drift` gives what is known of a model's drift, which is taken off chunks from behind the prelude.
    `movable` False (RoPE whose angles depend on the prompt's length) turns blending off.
    """

    def __init__(
        self,
        exact: Planner,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        controller: Controller,
        clock: Clock,
        *,
        movable: bool = True,
        rule: Rule | None = None,
        drift: Callable[[Fingerprint], Drift | None] = lambda _: None,
        loader: Executor | None = None,
        on_plan: Callable[[Request], None] | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._exact = exact
        self._store = store
        self._shape = shape
        self._fingerprint = fingerprint
        self._controller = controller
        self._clock = clock
        self._movable = movable
        self._rule = rule or AskedRows()
        self._drift = drift
        self._loader = loader or ThreadPoolExecutor(1, thread_name_prefix="kdn-blend")
        self._on_plan = on_plan
        self._trace = trace or NoTrace()

    def cached_tokens(self, request: Request) -> int:
        """The exact prefix; what blending may spare besides is not promised."""
        return self._exact.cached_tokens(request)

    def plan(self, request: Request) -> Planned:
        planned = self._exact.plan(request)
        if request.blend is None or not self._movable:
            return planned
        if self._on_plan is not None:
            self._on_plan(request)
        chunks = self._shelf(request).chunks(request.prompt, planned.exact)
        layout = _layout(request.prompt, planned.exact, chunks)
        ratio = self._ratio(request, chunks, layout)
        if layout.budget(ratio) >= layout.num_reused:
            _close(chunks)
            return _plain(planned, request.prompt)
        return self._blended(request, planned, chunks, layout, ratio)

    def retain(self, request: Request, kept: RetainedKV) -> None:
        self._exact.retain(request, kept)

    def lessons(self, request: Request) -> list[Request]:
        """Requests that store what a blended one lacked: each document alone behind the prelude."""
        if request.blend is None or request.retention is Retention.NOTHING:
            return []
        prompt = request.prompt
        head, tail = prompt.segments[0], prompt.segments[-1]
        if head.role is not Role.PRELUDE:
            return []
        ask = Segment(Role.QUESTION, tail.token_ids[-1:])
        return [
            replace(
                request,
                id=f"learn-{uuid.uuid4().hex[:8]}",
                prompt=Prompt((head, document, ask)),
                sampling=Sampling(max_tokens=1),
                blend=None,
                retention=Retention.SHARED,
            )
            for document in self._shelf(request).lacks(prompt)
        ]

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _shelf(self, request: Request) -> Shelf:
        return Shelf(self._store, self._fingerprint(request.adapter), request.salt)

    def _ratio(self, request: Request, chunks: list[Chunk], layout: BlendLayout) -> float:
        assert request.blend is not None, "only blended requests have a ratio"
        if request.blend.ratio is not None:
            return request.blend.ratio
        return self._controller.ratio(
            _tiers(chunks), self._shape, layout.num_tokens, request.blend.collection
        )

    def _blended(
        self,
        request: Request,
        planned: Planned,
        chunks: list[Chunk],
        layout: BlendLayout,
        ratio: float,
    ) -> Planned:
        drift = self._drift(self._fingerprint(request.adapter))
        base = replace(
            planned.plan,
            rows=(ALL_ROWS,) * self._shape.num_layers,
            stored=tuple(self._run(chunk, drift) for chunk in chunks),
            keep=RetainedPrefix(0, BLENDED),
        )
        count = layout.budget(ratio)
        tiers = dict(planned.tiers)
        for tier, tokens in _tiers(chunks).items():
            tiers[tier] = tiers.get(tier, 0) + tokens
        self._trace.event(
            "blend.plan",
            request=request.id,
            exact=planned.exact,
            reused=layout.num_reused,
            recomputed=count,
            ratio=ratio,
        )
        return Planned(
            self._rule(base, layout, count),
            exact=planned.exact,
            lossy=planned.lossy,
            levels=planned.levels,
            blended=layout.num_reused - count,
            tiers=tiers,
        )

    def _run(self, chunk: Chunk, drift: Drift | None) -> StoredRun:
        """The chunk as a source, its loads timed in the name of its slowest tier."""
        slowest = max(_tiers([chunk]), key=lambda t: self._controller.load_s(t, 1))
        loader = Stopwatch(self._loader, self._clock, self._controller, slowest, loaded_bytes)
        name = f"chunk at {chunk.start}"
        source = StoreSource(name, chunk.readers, self._shape, loader, self._clock)
        if drift is None or not chunk.alone:
            return StoredRun(chunk.start, source)
        return StoredRun(chunk.start, BiasCorrected(source, drift))


def _layout(prompt: Prompt, num_exact: int, chunks: list[Chunk]) -> BlendLayout:
    ends = [stop for segment, _, stop in prompt.spans() if segment.role is Role.DOCUMENT]
    asking = max([num_exact, *ends])
    spans = tuple((chunk.start, chunk.stop) for chunk in chunks)
    return BlendLayout(prompt.num_tokens, num_exact, spans, min(asking, prompt.num_tokens - 1))


def _plain(planned: Planned, prompt: Prompt) -> Planned:
    """No chunk is reused, so all is computed and exact, and kept as the request wishes.

    But documents that come only now are kept no further than the first: the others stand behind it
    here, and will be learned behind the prelude.
    """
    stops = [stop for segment, _, stop in prompt.spans() if segment.role is Role.DOCUMENT]
    if not stops or stops[-1] <= planned.exact:
        return planned
    return replace(planned, plan=replace(planned.plan, keep=RetainedPrefix(stops[0], EXACT)))


def _tiers(chunks: list[Chunk]) -> dict[str, int]:
    """Tokens by the tier that supplies them."""
    tiers: dict[str, int] = {}
    for chunk in chunks:
        for reader in chunk.readers:
            tiers[reader.tier] = tiers.get(reader.tier, 0) + reader.num_tokens
    return tiers


def _close(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        for reader in chunk.readers:
            reader.close()
