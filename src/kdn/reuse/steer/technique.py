"""Steering as a technique of the stack: columns of the prompt are scaled for the rows that answer.

    known factors ──────────────────────────────────────────> the plan, with scales
    probe: the question over the context as it is ─> best sentence ─> the question once more, with scales
                                                  └> none is clear ─> the last row once more, without

Nothing before the last message is computed in another way, so all of it is stored and reused as ever;
what is computed under scales is not stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kdn.core import (
    Blend,
    ColumnScale,
    Fingerprint,
    GivenRows,
    Invoked,
    KvShape,
    Plan,
    Planned,
    Request,
    RetainedPrefix,
    Role,
)
from kdn.reuse.shortened import reused_before
from kdn.reuse.source import StoreSource, close_all, tokens_by_tier
from kdn.reuse.steer.option import Steer, steered_from
from kdn.reuse.steer.probe import SentenceProbe
from kdn.reuse.steer.recipe import SteerRecipe
from kdn.reuse.steer.spans import ColumnFactors
from kdn.reuse.stored_run import run_name, whole_run
from kdn.reuse.technique import Technique
from kdn.store import Match, Store, open_leading
from kdn.trace import NoTrace, Trace

__all__ = ["SteerReuse", "scales_of"]


class SteerReuse(Technique):
    """Adds column scales to the plans of requests that carry `Steer`. Stands after all that add KV."""

    option = Steer
    without_reuse = True

    def __init__(
        self,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        *,
        invoked: Callable[[Request], Invoked | None] = lambda _: None,
        trace: Trace | None = None,
    ) -> None:
        """`invoked` says where in a prompt an adapter begins: only what stands before it may be steered
        beforehand."""
        self._store = store
        self._shape = shape
        self._fingerprint = fingerprint
        self._invoked = invoked
        self._num_layers = shape.num_layers
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="kdn-steer")
        self._trace = trace or NoTrace()

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def refine(self, request: Request, planned: Planned) -> Planned:
        steer, prompt = request.option(Steer), request.prompt
        assert steer is not None, "the stack asks for requests with the option only"
        if steer.recipe is not None:
            return self._edited(request, planned, steer.recipe)
        since = steered_from(prompt, steer.factors)
        planned = reused_before(planned, since)
        plan = planned.plan
        scales = scales_of(steer.factors, steer.after, self._num_layers)
        if not steer.sentences:
            self._told(request, steer.factors)
            return replace(planned, plan=_steered(plan, scales, since))
        sentences = SentenceProbe(steer.sentences, since, self._num_layers, steer.asked_to)

        def then() -> Plan:
            seen = sentences.found()
            is_clear = seen is not None and seen.share >= steer.least_share
            best = seen.sentence if seen is not None and is_clear else ()
            found = tuple((column, steer.weight) for column in best)
            self._told(request, (*steer.factors, *found))
            own = scales_of(found, steer.after, self._num_layers)
            # what the probe pass has computed or loaded lies in its place; without scales the last
            # row is enough
            is_plain = not (scales or own) and plan.logits is None
            first = plan.num_tokens - 1 if is_plain else since
            last = GivenRows(tuple(range(first, plan.num_tokens)))
            again = plan.then() if plan.then else replace(plan, stored=(), rows=(last,))
            return _steered(again, (*scales, *own), since)

        probe = replace(plan, observers=(*plan.observers, sentences), logits=(), then=then)
        return replace(planned, plan=_kept_before(probe, since))

    def _edited(self, request: Request, planned: Planned, recipe: SteerRecipe) -> Planned:
        """The plan over texts that were steered beforehand, in place of plain ones that may reach further.

        Only a document that is stored so as a whole was steered: one that begins alike is another text.

        What follows attends to the columns as they were made; none of it is stored.
        """
        fingerprint = self._fingerprint(request.adapter)
        recipe.check_model(fingerprint)
        has_blended = planned.plan.stored and request.option(Blend) is not None
        if has_blended or not request.reuse:
            return planned  # blending has taken its texts wherever they stand, or none may be taken
        token_ids = request.prompt.token_ids[:-1]
        match = self._whole_documents(request, fingerprint, recipe)
        stop = match.num_tokens
        readers = open_leading(self._store.tiers, match.hits, self._store.open)
        if not readers or sum(reader.num_tokens for reader in readers) < stop:
            close_all(readers)
            self._trace.event("steer.miss", request=request.id, recipe=recipe.taint.detail)
            return planned
        for source in (planned.plan.prefix, *(run.source for run in planned.plan.stored)):
            if source is not None:
                source.close()
        name = run_name(readers, recipe.taint.name, request.salt, token_ids)
        clock = self._store.links.clock
        steered = StoreSource(name, readers, self._shape, self._loader, clock)
        scales = tuple(scale for reader in readers for scale in reader.scales)
        plan = Plan(
            request.prompt.token_ids,
            prefix=steered,
            scale=scales,
            keep=RetainedPrefix(0, recipe.taint),
        )
        return Planned(plan, lossy=stop, tiers=tokens_by_tier(readers))

    def _whole_documents(
        self, request: Request, fingerprint: Fingerprint, recipe: SteerRecipe
    ) -> Match:
        """The prompt's beginning up to the last document that the recipe has steered as a whole."""
        token_ids, invoked = request.prompt.token_ids[:-1], self._invoked(request)
        if invoked is not None:
            token_ids = token_ids[: invoked.start]
        ends = [
            stop
            for segment, _, stop in request.prompt.spans()
            if segment.role is Role.DOCUMENT and stop <= len(token_ids)
        ]
        named = self._store, fingerprint, recipe.taint, request.salt
        return whole_run(*named, token_ids, ends) or Match()

    def _told(self, request: Request, factors: ColumnFactors) -> None:
        self._trace.event("steer.plan", request=request.id, columns=len(factors))


def scales_of(factors: ColumnFactors, after: float, num_layers: int) -> tuple[ColumnScale, ...]:
    """The factors at every layer from the share `after` on; columns of one factor stand together."""
    by_factor: Mapping[float, list[int]] = defaultdict(list)
    for column, factor in factors:
        by_factor[factor].append(column)
    return tuple(
        ColumnScale(layer, tuple(columns), factor)
        for layer in range(round(after * num_layers), num_layers)
        for factor, columns in by_factor.items()
    )


def _steered(plan: Plan, scales: tuple[ColumnScale, ...], since: int) -> Plan:
    """The plan with scales for rows from `since` on; a probe pass has them after it."""
    kept = _kept_before(plan, since)
    then = plan.then
    if then is None:
        return replace(kept, scale=(*plan.scale, *scales), scale_from=since)
    return replace(kept, then=lambda: _steered(then(), scales, since))


def _kept_before(plan: Plan, since: int) -> Plan:
    """The plan, with no KV of rows that see scales left behind."""
    keep = plan.keep or RetainedPrefix(since)
    return replace(plan, keep=replace(keep, num_tokens=keep.within(since)))
