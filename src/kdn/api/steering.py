"""What callers hand in to steer an answer, and what steering did to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from kdn.api.answers import SteerReport, collect
from kdn.core import Request, Retention, Sampling, Stream
from kdn.rag import Part
from kdn.reuse.blend import divergence
from kdn.reuse.steer import LOOK_WEIGHT, MarkedSpan, Steer, SteerRecipe

__all__ = ["AskSteering", "Steering", "retrieved_spans", "steer_report"]

Steering = Literal["look"] | SteerRecipe | MarkedSpan | Mapping[str, object] | Sequence[object]
"""`"look"`, or spans (`kdn.reuse.steer.MarkedSpan`, or mappings with its fields), or a recipe that texts
were steered by beforehand."""
AskSteering = Steering | Literal["retrieved"]
_ALTERNATIVES = 64


def steer_report(submit: Callable[[Request], Stream], request: Request) -> SteerReport:
    """Asks twice more: without steering, and with it for one token. Nothing of it is retained."""
    steer = request.option(Steer) or Steer()
    once = replace(
        request,
        sampling=Sampling(max_tokens=1, logprobs=_ALTERNATIVES, ignore_eos=True),
        retention=Retention.NOTHING,
    )
    plain, steered = (
        collect(submit(replace(one, id=f"steer-{uuid.uuid4().hex[:8]}"))).tokens[0].alternatives
        for one in (once.without(Steer), once)
    )
    again = replace(
        once.without(Steer), sampling=request.sampling, id=f"plain-{uuid.uuid4().hex[:8]}"
    )
    return SteerReport(
        kl=divergence(
            {one.token_id: one.logprob for one in plain},
            {one.token_id: one.logprob for one in steered},
        ),
        plain_text=collect(submit(again)).text,
        num_columns=len(steer.factors) + sum(map(len, steer.sentences)),
    )


def retrieved_spans(parts: Sequence[Part]) -> list[MarkedSpan]:
    """The passage that retrieval put first, in the part that holds it; none where it is not told."""
    hits = [(hit, number) for number, part in enumerate(parts) for hit in part.hits]
    for hit, number in sorted(hits, key=lambda one: -one[0].score):
        start = parts[number].text.find(hit.passage.text)
        if start >= 0:
            stop = start + len(hit.passage.text)
            return [MarkedSpan(LOOK_WEIGHT, document=number, start=start, stop=stop)]
    return []
