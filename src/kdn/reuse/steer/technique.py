"""Steering as a technique of the stack: columns of the prompt are scaled for the rows that answer.

    known factors ──────────────────────────────────────────> the plan, with scales
    look: the question over the context as it is ─> best sentence ─> the question once more, with scales

Nothing before the last message is computed in another way, so all of it is stored and reused as ever;
what is computed under scales is not stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from kdn.core import (
    ColumnScale,
    GivenRows,
    Plan,
    Planned,
    Request,
    RetainedPrefix,
)
from kdn.reuse.steer.look import SentenceLook
from kdn.reuse.steer.option import Steer, steered_from
from kdn.reuse.steer.sources import LeadingTokens
from kdn.reuse.steer.spans import ColumnFactors
from kdn.reuse.technique import Technique
from kdn.trace import NoTrace, Trace

__all__ = ["SteerReuse", "scales_of"]


class SteerReuse(Technique):
    """Adds column scales to the plans of requests that carry `Steer`. Stands after all that add KV."""

    option = Steer

    def __init__(self, num_layers: int, *, trace: Trace | None = None) -> None:
        self._num_layers = num_layers
        self._trace = trace or NoTrace()

    def refine(self, request: Request, planned: Planned) -> Planned:
        steer, prompt = request.option(Steer), request.prompt
        assert steer is not None, "the stack asks for requests with the option only"
        since = steered_from(prompt, steer.factors)
        planned = _reused_before(planned, since)
        plan = planned.plan
        scales = scales_of(steer.factors, steer.after, self._num_layers)
        if not steer.sentences:
            self._told(request, steer.factors)
            return replace(planned, plan=_steered(plan, scales, since))
        look = SentenceLook(steer.sentences, since, self._num_layers)

        def then() -> Plan:
            best = look.best()
            found = () if best is None else tuple((column, steer.weight) for column in best)
            self._told(request, (*steer.factors, *found))
            own = scales_of(found, steer.after, self._num_layers)
            # what the probe pass has computed or loaded lies in its place
            last = GivenRows(tuple(range(since, plan.num_tokens)))
            again = plan.then() if plan.then else replace(plan, stored=(), rows=(last,))
            return _steered(again, (*scales, *own), since)

        probe = replace(plan, observers=(*plan.observers, look), logits=(), then=then)
        return replace(planned, plan=_kept_before(probe, since))

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
    return replace(plan, keep=replace(keep, num_tokens=min(keep.num_tokens, since)))


def _reused_before(planned: Planned, since: int) -> Planned:
    """The plan with no row taken from the store that is to see scales."""
    plan = planned.plan
    if plan.prefix is None or plan.num_prefix <= since:
        return planned
    spare = plan.num_prefix - since
    plan = replace(plan, prefix=LeadingTokens(plan.prefix, since))
    exact, lossy = max(planned.exact - spare, 0), max(planned.lossy - spare, 0)
    return replace(planned, plan=plan, exact=exact, lossy=lossy)
