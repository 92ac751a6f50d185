"""Blending: stored documents after the exact prefix are reused, and some of their rows recomputed.

    prompt ─> exact prefix ─> stored documents after it ─> ratio ─> rule ─> plan
                                     │ lacking ones
                                     └─> background prefills: each alone after the prelude

Nothing that a blended pass computes is stored: every value after the first reused chunk is tainted,
and a tainted block would serve no other prompt.  What a blended prompt adds to the store are its
documents, each computed alone after the neutral prelude, so that the next prompt finds them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kdn.clock import Clock
from kdn.core import (
    ALL_ROWS,
    EXACT,
    Blend,
    Cause,
    Fingerprint,
    Invoked,
    KvShape,
    Planned,
    Prefix,
    Prompt,
    Recipe,
    Request,
    RetainedPrefix,
    Retention,
    Role,
    Sampling,
    Segment,
    Share,
    StoredRun,
)
from kdn.reuse.blend.chunks import Chunk, StoredDocuments
from kdn.reuse.blend.controller import RatioController, TimedLoader
from kdn.reuse.blend.key_bias import KeyBias
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.question_attention import AttendedRows
from kdn.reuse.blend.recomputed_rows import BlendRule
from kdn.reuse.shortened import reused_before
from kdn.reuse.source import StoreSource, close_all, loaded_bytes, tokens_by_tier
from kdn.reuse.technique import Technique
from kdn.store import Store
from kdn.trace import NoTrace, Trace

__all__ = ["BlendReuse"]


class BlendReuse(Technique):
    """Adds stored documents to the plans of requests that ask for blending.

    `bias` gives what is known of a model's key bias, which is added to chunks that were computed
    after the prelude alone.  `recipe` names the stored documents that a request prefers to others;
    then its exact prefix ends where the first of them begins.  `reads` says what else may stand in for
    computing, as `LossRule` does; `invoked` where in a prompt an adapter begins, behind which no
    document is reused.  `movable` False (RoPE whose angles depend on the prompt's length) turns blending
    off.
    """

    option = Blend

    def __init__(
        self,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        controller: RatioController,
        clock: Clock,
        *,
        movable: bool = True,
        bias: Callable[[Fingerprint], KeyBias | None] = lambda _: None,
        recipe: Callable[[Request], Recipe] = lambda _: EXACT,
        reads: Callable[[Request, Fingerprint], Sequence[Recipe]] = lambda *_: (EXACT,),
        invoked: Callable[[Request], Invoked | None] = lambda _: None,
        rule: BlendRule | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._store = store
        self._shape = shape
        self._fingerprint = fingerprint
        self._controller = controller
        self._clock = clock
        self._movable = movable
        self.rule: BlendRule = rule or AttendedRows()
        """What chooses the recomputed rows, from the next request on."""
        self._bias = bias
        self._recipe, self._reads, self._invoked = recipe, reads, invoked
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="kdn-blend")
        self._trace = trace or NoTrace()

    def refine(self, request: Request, planned: Planned) -> Planned:
        if not self._movable:
            return planned
        documents = self._documents(request)
        by_recipe = documents.made_by_recipe(request.prompt)
        if by_recipe is not None:
            planned = reused_before(planned, by_recipe)
        num_prefix = planned.plan.num_prefix
        chunks = documents.chunks(request.prompt, num_prefix)
        try:
            layout = _layout(request.prompt, num_prefix, chunks)
            ratio = self._ratio(request, chunks, layout)
            if layout.budget(ratio) < layout.num_reused:
                return self._blended(request, planned, chunks, layout, ratio)
        except BaseException:
            _close(chunks)
            raise
        _close(chunks)
        return _unblended(planned, request.prompt)

    def background(self, request: Request) -> list[Request]:
        """Requests that store what a blended one lacked: each document alone after the prelude."""
        if request.retention is Retention.NOTHING:
            return []
        prompt = request.prompt
        prelude, question = prompt.segments[0], prompt.segments[-1]
        if prelude.role is not Role.PRELUDE:
            return []
        ask = Segment(Role.QUESTION, question.token_ids[-1:])
        limits = request.option(Prefix)
        # What the request may read is what is stored for it. A sibling's KV would be found by no blended one.
        techniques = (Share("exact"), *(() if limits is None else (Prefix(limits.max_kl),)))
        return [
            replace(
                request.alone(),
                id=f"background-{uuid.uuid4().hex[:8]}",
                prompt=Prompt((prelude, document, ask)),
                techniques=techniques,
                sampling=Sampling(max_tokens=1),
                retention=Retention.SHARED,
            )
            for document in self._documents(request).lacks(prompt)
        ]

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _documents(self, request: Request) -> StoredDocuments:
        fingerprint, invoked = self._fingerprint(request.adapter), self._invoked(request)
        return StoredDocuments(
            self._store,
            fingerprint,
            request.salt,
            self._recipe(request),
            self._reads(request, fingerprint),
            None if invoked is None else invoked.start,
        )

    def _ratio(self, request: Request, chunks: list[Chunk], layout: BlendLayout) -> float:
        blend = request.option(Blend) or Blend()
        if blend.ratio is not None:
            return blend.ratio
        return self._controller.ratio(
            _tiers(chunks), self._shape, layout.num_tokens, blend.collection, request.salt
        )

    def _blended(
        self,
        request: Request,
        planned: Planned,
        chunks: list[Chunk],
        layout: BlendLayout,
        ratio: float,
    ) -> Planned:
        bias = self._bias(self._fingerprint(request.adapter))
        base = replace(
            planned.plan,
            rows=(ALL_ROWS,) * self._shape.num_layers,
            stored=tuple(self._run(chunk, bias) for chunk in chunks),
            scale=tuple(scale for chunk in chunks for scale in chunk.scales),
            keep=RetainedPrefix(0, _taint(self._recipe(request))),
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
        return replace(
            planned,
            plan=self.rule(base, layout, count),
            blended=layout.num_reused - count,
            moved=tuple((run.start, run.stop) for run in base.stored),
            tiers=tiers,
        )

    def _run(self, chunk: Chunk, bias: KeyBias | None) -> StoredRun:
        """The chunk as a source, its loads timed in the name of its slowest tier."""
        speeds = self._controller.speeds
        slowest = max(_tiers([chunk]), key=lambda t: speeds.load_s(t, 1))
        loader = TimedLoader(self._loader, self._clock, speeds, slowest, loaded_bytes)
        name = f"chunk at {chunk.start}"
        source = StoreSource(name, chunk.readers, self._shape, loader, self._clock)
        if bias is None or not chunk.alone:
            return StoredRun(chunk.start, source)
        return StoredRun(chunk.start, bias.over(source))


def _taint(documents: Recipe) -> Recipe:
    """Of what is computed after such documents."""
    return replace(documents, causes=(Cause.BLEND, *documents.causes))


def _layout(prompt: Prompt, num_exact: int, chunks: list[Chunk]) -> BlendLayout:
    ends = [stop for segment, _, stop in prompt.spans() if segment.role is Role.DOCUMENT]
    asking = max([num_exact, *ends])
    spans = tuple((chunk.start, chunk.stop) for chunk in chunks)
    return BlendLayout(prompt.num_tokens, num_exact, spans, min(asking, prompt.num_tokens - 1))


def _unblended(planned: Planned, prompt: Prompt) -> Planned:
    """No chunk is reused, so all is computed as planned, and retained as the request wishes.

    But documents that are new here are retained no further than the first: the others follow it
    here, and background prefills compute them after the prelude.
    """
    stops = [stop for segment, _, stop in prompt.spans() if segment.role is Role.DOCUMENT]
    if not stops or stops[-1] <= planned.plan.num_prefix:
        return planned
    recipe = planned.plan.keep.recipe if planned.plan.keep else EXACT
    return replace(planned, plan=replace(planned.plan, keep=RetainedPrefix(stops[0], recipe)))


def _tiers(chunks: list[Chunk]) -> dict[str, int]:
    """Tokens by the tier that supplies them."""
    return tokens_by_tier(reader for chunk in chunks for reader in chunk.readers)


def _close(chunks: list[Chunk]) -> None:
    close_all(reader for chunk in chunks for reader in chunk.readers)
