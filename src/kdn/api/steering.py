"""What callers hand in to steer an answer, and what steering did to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from kdn.api.answers import Answer, SteerReport, collect
from kdn.core import Prompt, Request, Retention, Sampling, Stream, TokenIds
from kdn.errors import BadInput
from kdn.rag import Part
from kdn.reuse.blend import divergence
from kdn.reuse.steer import LOOK_WEIGHT, MarkedSpan, Steer, SteerRecipe

__all__ = [
    "AskSteering",
    "Steering",
    "is_steered",
    "retrieved_spans",
    "steer_report",
    "steered_answer",
]

Steering = str | SteerRecipe | MarkedSpan | Mapping[str, object] | Sequence[object] | None
"""`"look"`, which leaves an answer alone where no sentence is clear, `"look-always"`, spans
(`kdn.reuse.steer.MarkedSpan`, or mappings with its fields), or a recipe that texts were steered by
beforehand, itself or by its name in the home."""
AskSteering = Steering
"""As `Steering`, or `"retrieved"`: the passage that retrieval put first."""
_ALTERNATIVES = 64
_COMPARED = 16
"""Tokens of an answer, from the first on, that a report compares."""


def is_steered(steer: object, *, report: bool) -> bool:
    """Does a caller ask for steering? None and an empty list do not.

    Raises BadInput for a report that is wanted without it.
    """
    is_nothing = steer is None or (isinstance(steer, (list, tuple)) and not steer)
    if is_nothing and report:
        raise BadInput("a report tells what steering did: give steer too")
    return not is_nothing


def steered_answer(
    submit: Callable[[Request], Stream],
    request: Request,
    show: Callable[[str], None] | None,
    *,
    report: bool,
) -> Answer:
    """The request's answer, shown as it comes; with `report` it says what steering did."""
    answer = collect(submit(request), show)
    if not report:
        return answer
    return replace(answer, steering=steer_report(submit, request, answer.token_ids))


@dataclass(frozen=True)
class _Seen:
    """One position of an answer: the likeliest tokens there, and the token that was drawn."""

    logprobs: Mapping[int, float]
    drawn: float | None


def steer_report(
    submit: Callable[[Request], Stream], request: Request, drawn: TokenIds
) -> SteerReport:
    """Compares `drawn`, the steered answer to `request`, with the model that is not steered.

    Every compared token is asked for twice more, with steering and without, and the answer once more
    without it.  Nothing of it is retained.
    """
    steer = request.option(Steer) or Steer()
    asked = replace(request.alone(), retention=Retention.NOTHING)
    steered_as = replace(steer, asked_to=steer.asked_to or request.prompt.num_tokens)
    plain, steered = [], []
    for number in range(max(min(len(drawn), _COMPARED), 1)):
        prompt = _continued(request.prompt, drawn[:number])
        token = drawn[number] if drawn else None
        once = replace(asked, prompt=prompt)
        plain.append(_seen(submit, once.without(Steer), token))
        steered.append(_seen(submit, once.using(steered_as), token))
    again = replace(asked.without(Steer), id=_new_id("plain"))
    return SteerReport(
        kl=mean(divergence(a.logprobs, b.logprobs) for a, b in zip(plain, steered, strict=True)),
        nll=_nll(steered),
        plain_nll=_nll(plain),
        num_compared=len(plain),
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


def _continued(prompt: Prompt, token_ids: TokenIds) -> Prompt:
    """The prompt with the answer's first tokens at its end."""
    *before, last = prompt.segments
    return Prompt((*before, replace(last, token_ids=(*last.token_ids, *token_ids))))


def _seen(submit: Callable[[Request], Stream], request: Request, token: int | None) -> _Seen:
    """The next token's distribution, before temperature and limits."""
    likeliest = Sampling(max_tokens=1, logprobs=_ALTERNATIVES, ignore_eos=True)
    found = _next(submit, request, likeliest)
    if token is None or token in found:
        return _Seen(found, None if token is None else found[token])
    named = replace(likeliest, ranked=(token,))
    return _Seen(found, _next(submit, request, named)[token])


def _next(
    submit: Callable[[Request], Stream], request: Request, sampling: Sampling
) -> dict[int, float]:
    asked = replace(request, sampling=sampling, id=_new_id("steer"))
    (token,) = collect(submit(asked)).tokens
    return {one.token_id: one.logprob for one in token.alternatives}


def _nll(seen: Sequence[_Seen]) -> float | None:
    found = [-one.drawn for one in seen if one.drawn is not None]
    return mean(found) if found else None


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}"
