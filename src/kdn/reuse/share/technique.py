"""Sharing as a technique: where the store lacks a model's KV of a context, a sibling's stands in.

    prompt ─> own exact prefix ─> own shared prefix (tainted) ─> a sibling's blocks after it
                                                                  └─> the pair's profile ─> plan

A sender's layer inputs are stored with its blocks, at the layers that receivers begin from.  What is
computed over a sibling's KV is tainted: it is kept under a recipe that names the way, which this model's
later requests find if they allow that way too (`limits.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import torch

from kdn.clock import Clock
from kdn.core import (
    EXACT,
    Fingerprint,
    Invoked,
    KvShape,
    LayerSource,
    Planned,
    Request,
    RetainedKV,
    RetainedPrefix,
    ShareConfig,
)
from kdn.reuse.share.guard import ShareGuard
from kdn.reuse.share.limits import ShareLimits, limits_of, shared_recipe
from kdn.reuse.share.pairs import SharePoint, ShareRecords, choose_point, seconds_at
from kdn.reuse.share.plans import SharedSpan, share_plan
from kdn.reuse.share.states import StatesCapture, StoredStates
from kdn.reuse.source import MeasuredSpeeds, StoreSource, close_all, tokens_by_tier
from kdn.reuse.stored_run import (
    exact_tokens,
    made_as,
    run_name,
    stored_recipes,
    stored_run,
    taint_of,
)
from kdn.reuse.technique import Technique
from kdn.store import BlockHit, Match, Reader, Store, open_leading
from kdn.trace import NoTrace, Trace

__all__ = ["ShareReuse", "Sibling"]

WORTH_TOKENS = 64
"""A sibling must have read so many tokens more than the model itself."""


@dataclass(frozen=True)
class Sibling:
    """A model of the same shape and tokenizer, by what names its KV."""

    name: str
    fingerprint: Fingerprint


@dataclass(frozen=True)
class _Found:
    """What a sibling has of a prompt, and how it is used."""

    sibling: Sibling
    hits: tuple[BlockHit, ...]
    point: SharePoint

    @property
    def start(self) -> int:
        return self.hits[0].id.start

    @property
    def num_tokens(self) -> int:
        return sum(hit.num_tokens for hit in self.hits)


@dataclass(frozen=True)
class _NotWorth:
    """What a sibling has read is left: the quickest way within the quality takes longer than a prefill."""

    sibling: Sibling
    num_tokens: int
    quickest_s: float
    prefill_s: float

    def told(self, planned: Planned) -> Planned:
        """The plan, which counts the tokens as stored and declined."""
        stored = max(planned.stored, planned.exact) + self.num_tokens
        return replace(planned, stored=stored, declined=planned.declined + self.num_tokens)


class ShareReuse(Technique):
    """Adds siblings' KV to the plans of requests that ask for it, by what was measured of each pair."""

    def __init__(
        self,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        records: ShareRecords,
        clock: Clock,
        *,
        siblings: Callable[[], Sequence[Sibling]] = tuple,
        settings: ShareConfig,
        guard: ShareGuard | None = None,
        speeds: MeasuredSpeeds | None = None,
        is_waiting: Callable[[], bool] = lambda: True,
        invoked: Callable[[Request], Invoked | None] = lambda _: None,
        trace: Trace | None = None,
    ) -> None:
        """`siblings` are the models that share this store now; those of the profiles join them.

        `settings` hold for what requests do not say.  `is_waiting` says whether other requests wait to
        be planned, `invoked` where in a prompt an adapter begins: what siblings have read stands in for
        what is before it.
        """
        self._store, self._shape, self._fingerprint = store, shape, fingerprint
        self._records, self._clock, self._siblings = records, clock, siblings
        self.needs = records.pairs
        self._settings, self._guard = settings, guard
        self._speeds = speeds or MeasuredSpeeds()
        self._is_waiting = is_waiting
        self._invoked = invoked
        self._trace = trace or NoTrace()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="kdn-share")
        self._dtype: torch.dtype = getattr(torch, shape.dtype)
        self._captures: WeakValueDictionary[str, StatesCapture] = WeakValueDictionary()

    def cached_tokens(self, request: Request) -> int:
        limits = self._limits(request)
        if limits is None:
            return 0
        found = self._find(request, limits, 0)
        reach = found.start + found.num_tokens if isinstance(found, _Found) else 0
        return max(self._own(request, limits).num_tokens, reach)

    def refine(self, request: Request, planned: Planned) -> Planned:
        refined = self._refined(request, planned)
        if refined.shared and self._guard is not None:
            self._guard.note(request)
        return refined

    def _refined(self, request: Request, planned: Planned) -> Planned:
        limits = self._limits(request)
        if limits is None or planned.lossy:
            return self._capturing(request, planned)
        exact = planned.plan.num_prefix
        own, found = self._own(request, limits), self._find(request, limits, exact)
        reach = found.start + found.num_tokens if isinstance(found, _Found) else 0
        if own.num_tokens >= max(exact + WORTH_TOKENS, reach):
            return self._again(request, planned, own)
        if isinstance(found, _Found):
            return self._shared(request, planned, found)
        if found is not None:
            self._trace.event(
                "share.not_worth",
                request=request.id,
                sender=found.sibling.name,
                tokens=found.num_tokens,
                quickest_ms=1e3 * found.quickest_s,
                prefill_ms=1e3 * found.prefill_s,
            )
            planned = found.told(planned)
        return self._capturing(request, planned)

    def retain(self, request: Request, retained: RetainedKV) -> RetainedKV:
        """Add the layer inputs that were noted for receivers."""
        capture = self._captures.get(request.id)
        if capture is None or retained.recipe.tainted:
            return retained
        states = capture.states(retained.start, len(retained.token_ids))
        return replace(retained, hidden=states)

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    # --- what there is -----------------------------------------------------------------------

    def _limits(self, request: Request) -> ShareLimits | None:
        """How the request shares; None: not at all, as where no sibling's way was profiled with its model, or
        where the guard does not trust that."""
        receiver = self._fingerprint(request.adapter)
        is_trusted = self._guard is None or self._guard.trusts(receiver)
        if not (is_trusted and self._records.senders(receiver)):
            return None
        return limits_of(request, self._settings)

    def _own(self, request: Request, limits: ShareLimits) -> Match:
        """What this model has of the prompt if some of it was shared before: its exact blocks, and those that
        earlier requests left after a sibling's KV, in one of the ways that this one allows."""
        receiver, invoked = self._fingerprint(request.adapter), self._invoked(request)
        allowed = limits.reads(self._records.senders(receiver))
        runs = [
            stored_run(self._store, request, receiver, recipe, invoked)
            for recipe in stored_recipes(self._store, request, receiver, allowed, invoked)
        ]
        tainted = [run for run in runs if taint_of(run.hits).tainted]
        return max(tainted, key=lambda run: run.num_tokens, default=Match())

    def _find(self, request: Request, limits: ShareLimits, exact: int) -> _Found | _NotWorth | None:
        """The sibling that has read most of the context after the first `exact` tokens, or that prefilling
        is sooner than any way to use what siblings have read."""
        receiver = self._fingerprint(request.adapter)
        invoked, stop = self._invoked(request), context_tokens(request)
        context = request.prompt.token_ids[: stop if invoked is None else min(stop, invoked.start)]
        best: _Found | None = None
        left: _NotWorth | None = None
        for sibling in self._senders(receiver):
            match = self._store.match(sibling.fingerprint, EXACT, request.salt, context)
            hits = tuple(hit for hit in match.hits if hit.id.start >= exact)
            gained = sum(hit.num_tokens for hit in hits)
            if gained < WORTH_TOKENS or (best is not None and gained <= best.num_tokens):
                continue
            point = self._choose(limits, sibling, receiver, hits, gained)
            if isinstance(point, _NotWorth):
                left = point
            elif point is not None:
                best = _Found(sibling, hits, point)
        return best or left

    def _senders(self, receiver: Fingerprint) -> list[Sibling]:
        """Siblings of which a profile with this receiver is known."""
        known = [
            Sibling(one.sender_name, Fingerprint(one.sender))
            for one in self._records.senders(receiver)
        ]
        named = {one.fingerprint: one for one in (*known, *self._siblings())}
        return [
            one
            for one in named.values()
            if one.fingerprint != receiver
            and self._records.get(one.fingerprint, receiver) is not None
        ]

    def _choose(
        self,
        limits: ShareLimits,
        sibling: Sibling,
        receiver: Fingerprint,
        hits: Sequence[BlockHit],
        num_tokens: int,
    ) -> SharePoint | _NotWorth | None:
        """The point of the pair's profile that fits the request and what is stored, and that the profile's
        times say to be quicker than prefilling these tokens."""
        record = self._records.get(sibling.fingerprint, receiver)
        assert record is not None, "senders have a profile"
        has_map = self._records.map(sibling.fingerprint, receiver, self._shape) is not None
        stored = self._stored_states(hits, [one.choice.needs_states for one in record.points])
        points = record.usable(
            limits.mode,
            lambda one: (
                (has_map or not one.mapped) and one.work < 1 and one.choice.needs_states in stored
            ),
        )
        size_bytes = sum(hit.num_tokens for hit in hits) * self._shape.token_bytes
        load_s = max((self._speeds.load_s(hit.tier, size_bytes) for hit in hits), default=0.0)
        estimated_s = self._speeds.prefill_s(num_tokens)

        def seconds(one: SharePoint) -> float:
            timed_s = seconds_at(one.times, num_tokens)
            return max(load_s, estimated_s * one.work if timed_s is None else timed_s)

        prefill_s = record.prefill_s(num_tokens)
        quicker = [one for one in points if prefill_s is None or seconds(one) < prefill_s]
        chosen = choose_point(
            quicker,
            max_kl=limits.max_kl,
            is_waiting=self._is_waiting(),
            seconds=seconds,
            within_s=limits.within_s,
        )
        good = [seconds(one) for one in points if one.kl <= limits.max_kl]
        if chosen is None and good and prefill_s is not None:
            return _NotWorth(sibling, num_tokens, min(good), prefill_s)
        return chosen

    def _stored_states(
        self, hits: Sequence[BlockHit], layers: Iterable[int | None]
    ) -> set[int | None]:
        """Those of the layers whose inputs all hits hold; None, which needs none, is always there."""
        found = set(layers) | {None}
        for hit in hits:
            if found == {None}:
                break
            reader = self._store.open(hit)
            if reader is None:
                return {None}
            with reader:
                found = {one for one in found if one is None or reader.holds_hidden(one)}
        return found

    # --- plans -------------------------------------------------------------------------------

    def _capturing(self, request: Request, planned: Planned) -> Planned:
        """The plan, noting the layer inputs that receivers of this model begin from."""
        layers = self._records.start_layers(self._fingerprint(request.adapter))
        if not layers or planned.lossy or planned.blended:
            return planned
        capture = StatesCapture(layers)
        self._captures[request.id] = capture
        observers = (*planned.plan.observers, capture)
        return replace(planned, plan=replace(planned.plan, observers=observers))

    def _again(self, request: Request, planned: Planned, own: Match) -> Planned:
        """The plan over what an earlier request shared; what follows is tainted as well."""
        readers = open_leading(self._store.tiers, own.hits, self._store.open)
        num_tokens, exact = sum(reader.num_tokens for reader in readers), exact_tokens(readers)
        if num_tokens <= max(planned.plan.num_prefix, exact):
            close_all(readers)
            return planned
        if planned.plan.prefix is not None:
            planned.plan.prefix.close()
        token_ids = request.prompt.token_ids
        name = run_name(readers, made_as(readers), request.salt, token_ids)
        source = StoreSource(name, readers, self._shape, self._loader, self._clock)
        # what is computed after it is as lossy as the run, which has one recipe
        keep = RetainedPrefix(None, taint_of(readers))
        return replace(
            planned,
            plan=replace(planned.plan, prefix=source, keep=keep),
            exact=exact,
            shared=num_tokens - exact,
            tiers=tokens_by_tier(readers),
        )

    def _shared(self, request: Request, planned: Planned, found: _Found) -> Planned:
        """The plan over the sibling's KV."""
        readers = open_leading(self._store.tiers, found.hits, self._store.open)
        num_tokens = sum(reader.num_tokens for reader in readers)
        if num_tokens < WORTH_TOKENS:
            close_all(readers)
            return planned
        try:
            span = self._span(request, found, readers)
            plan = share_plan(planned.plan, found.point.choice, span, self._shape.num_layers)
        except BaseException:
            close_all(readers)
            raise
        keep = RetainedPrefix(None, shared_recipe(found.point))
        if (
            found.point.ratio
        ):  # rows were chosen for this question: the next one would look elsewhere
            keep = RetainedPrefix(span.start)
        recomputed = round(found.point.ratio * num_tokens)
        tiers = dict(planned.tiers)
        for tier, tokens in tokens_by_tier(readers).items():
            tiers[tier] = tiers.get(tier, 0) + tokens
        self._trace.event(
            "share.plan",
            request=request.id,
            sender=found.sibling.name,
            how=found.point.choice.name,
            tokens=num_tokens,
        )
        return replace(
            planned,
            plan=replace(plan, keep=keep),
            shared=num_tokens - recomputed,
            moved=((span.start, span.stop),),
            tiers=tiers,
        )

    def _span(self, request: Request, found: _Found, readers: Sequence[Reader]) -> SharedSpan:
        receiver, choice = self._fingerprint(request.adapter), found.point.choice
        layers = None
        if choice.group is not None:
            first, last = choice.group
            outside = (range(first), range(last + 1, self._shape.num_layers))
            layers = [one for one in outside if one]
        source: LayerSource = StoreSource(
            f"{found.sibling.fingerprint} at {found.start}",
            readers,
            self._shape,
            self._loader,
            self._clock,
            layers=layers,
        )
        if choice.mapped:
            through = self._records.map(found.sibling.fingerprint, receiver, self._shape)
            assert through is not None, "points with a map are chosen where there is one"
            source = through.over(source)
        layer = choice.needs_states
        states = None if layer is None else StoredStates(readers, layer, self._dtype, self._loader)
        return SharedSpan(found.start, source, states)


def context_tokens(request: Request) -> int:
    """The tokens before the last segment: what several models may have read alike."""
    segments = request.prompt.segments
    before = sum(segment.num_tokens for segment in segments[:-1])
    return before or request.prompt.num_tokens - 1
