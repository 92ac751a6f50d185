"""Doors to one-token questions: /v1/score, /classify and /v1/decisions.

Two shapes of score are in use: pairs of texts (`text_1`/`text_2`, `queries`/`documents` and the
like), answered with how likely Yes is; and `query`, `items` and `label_token_ids`, answered with
the probability of each label token after query and item as they are, without a chat template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from kdn.core import Prompt, Request, Retention, Sampling, TokenIds
from kdn.rank import (
    YES_NO,
    Choice,
    ChoiceProbabilities,
    Conversation,
    classify_question,
    decision_question,
    glued,
    make_choices,
    pair_question,
    read_probabilities,
    wanted,
)
from kdn.serve.errors import Refused
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.encode import usage_report
from kdn.serve.openai.parse import adapter_of, check_ids
from kdn.serve.openai.requests import ClassifyBody, DecisionBody, JobBody, ScoreBody
from kdn.serve.openai.responses import UsageReport
from kdn.serve.openai.streams import Gathered, depart, gather, unless_gone
from kdn.serve.openai.unsupported import refuse_unsupported

__all__ = ["one_token_routes"]

MAX_QUESTIONS = 1024
"""Questions of one HTTP request; each holds a place in the queue."""


class Score(Struct):
    index: int
    score: float
    object: str = "score"


class ScoreList(Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: UsageReport


class LabelScores(Struct, kw_only=True):
    """`scores[item][label]` in the order of `items` and `label_token_ids`."""

    id: str
    object: str = "scoring"
    created: int
    model: str
    scores: list[list[float]]
    usage: UsageReport


class Classified(Struct):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifiedList(Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: UsageReport


class DecisionAnswer(Struct):
    index: int
    decision: bool
    probability: float
    """Of yes."""


class DecisionList(Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[DecisionAnswer]
    usage: UsageReport


@dataclass(frozen=True)
class _Asked:
    """What came back for each prompt, and what every answer begins with."""

    id: str
    created: int
    model: str
    answers: list[Gathered]

    @property
    def usage(self) -> UsageReport:
        usages = [answer.ended.usage for answer in self.answers]
        return usage_report(usages, usages)

    def verdicts(self, choices: Sequence[Choice]) -> list[ChoiceProbabilities]:
        return [read_probabilities(choices, a.tokens[0], a.ended.usage) for a in self.answers]


def one_token_routes(desk: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()

    @router.post("/score")
    @router.post("/v1/score")
    async def score(body: ScoreBody, request: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        if body.label_token_ids is not None:
            return await _score_labels(desk, body, request)
        left, right = _pairs(body)
        choices = _choices(desk, YES_NO)
        asked = await _ask(
            desk,
            body,
            request,
            [pair_question(a, b, body.instruction) for a, b in zip(left, right, strict=True)],
            wanted(choices),
        )
        if asked is None:
            return Response(status_code=499)
        data = [Score(i, v.probabilities[0]) for i, v in enumerate(asked.verdicts(choices))]
        return _json(
            ScoreList(
                id=asked.id, created=asked.created, model=asked.model, data=data, usage=asked.usage
            )
        )

    @router.post("/classify")
    @router.post("/v1/classify")
    async def classify(body: ClassifyBody, request: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        texts = [body.input] if isinstance(body.input, str) else body.input
        choices = _choices(desk, body.labels)
        names = [choice.name for choice in choices]
        questions = [classify_question(text, names, body.instruction) for text in texts]
        asked = await _ask(desk, body, request, questions, wanted(choices))
        if asked is None:
            return Response(status_code=499)
        data = [
            Classified(index, verdict.best, list(verdict.probabilities), len(choices))
            for index, verdict in enumerate(asked.verdicts(choices))
        ]
        return _json(
            ClassifiedList(
                id=asked.id, created=asked.created, model=asked.model, data=data, usage=asked.usage
            )
        )

    @router.post("/v1/decisions")
    async def decide(body: DecisionBody, request: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        choices = _choices(desk, YES_NO)
        questions = [decision_question(body.input, one) for one in body.questions]
        asked = await _ask(desk, body, request, questions, wanted(choices))
        if asked is None:
            return Response(status_code=499)
        data = [
            DecisionAnswer(index, verdict.best == YES_NO[0], verdict.probabilities[0])
            for index, verdict in enumerate(asked.verdicts(choices))
        ]
        return _json(
            DecisionList(
                id=asked.id, created=asked.created, model=asked.model, data=data, usage=asked.usage
            )
        )

    return router


async def _score_labels(desk: RequestContext, body: ScoreBody, request: HttpRequest) -> Response:
    """Label tokens after query and item; shares among the labels, or probabilities among all tokens."""
    labels, vocabulary = tuple(body.label_token_ids or ()), desk.service.vocabulary
    check_ids(labels, vocabulary.vocab_size, "label_token_ids")
    if not labels or len(set(labels)) < len(labels):
        raise Refused("label_token_ids must name tokens, each once", param="label_token_ids")
    prompts = await run_in_threadpool(_label_prompts, desk, body)
    allowed = labels if body.apply_softmax else ()
    sampling = Sampling(max_tokens=1, ignore_eos=True, allowed=allowed, ranked=labels, logprobs=0)
    asked = await _run(desk, body, request, prompts, sampling)
    if asked is None:
        return Response(status_code=499)
    choices = [Choice(str(token), token) for token in labels]
    if body.apply_softmax:
        scores = [list(verdict.probabilities) for verdict in asked.verdicts(choices)]
    else:
        scores = [_raw(answer, labels) for answer in asked.answers]
    return _json(
        LabelScores(
            id=asked.id, created=asked.created, model=asked.model, scores=scores, usage=asked.usage
        )
    )


def _raw(answer: Gathered, labels: TokenIds) -> list[float]:
    found = {other.token_id: other.logprob for other in answer.tokens[0].alternatives}
    return [math.exp(found[label]) for label in labels]


def _label_prompts(desk: RequestContext, body: ScoreBody) -> list[Prompt]:
    query, items = body.query, body.items
    if query is None or not items:
        raise Refused("label_token_ids go with a query and items", param="items")
    vocabulary = desk.service.vocabulary
    start = vocabulary.bos_ids

    def ids(given: str | list[int]) -> TokenIds:
        found = vocabulary.encode(given) if isinstance(given, str) else tuple(given)
        check_ids(found, vocabulary.vocab_size, "items")
        return found

    asked = ids(query)
    found = []
    for item in [items] if isinstance(items, str) else items:
        own = ids(item)
        first, second = (own, asked) if body.item_first else (asked, own)
        if not (first or second):
            raise Refused("query and item are both empty", param="items")
        found.append(glued((*start, *first), second))
    return found


def _pairs(body: ScoreBody) -> tuple[list[str], list[str]]:
    """Queries and texts, one each; a single query is paired with every text."""
    lefts = (body.text_1, body.queries, body.data_1)
    rights = (body.text_2, body.documents, body.data_2, _texts_only(body.items))
    left = next((one for one in lefts if one is not None), None)
    right = next((one for one in rights if one is not None), None)
    if left is None or right is None:
        raise Refused(
            "give text_1 and text_2, queries and documents, queries and items, or data_1 and "
            "data_2; or query, items and label_token_ids",
            param="text_1",
        )
    queries = [left] if isinstance(left, str) else left
    texts = [right] if isinstance(right, str) else right
    if len(queries) == 1:
        queries = queries * len(texts)
    if len(queries) != len(texts) or not texts:
        raise Refused(
            f"{len(queries)} texts on one side cannot be paired with {len(texts)} on the other: "
            "give as many, or one and many",
            param="text_2",
        )
    return queries, texts


def _texts_only(items: str | list[str | list[int]] | None) -> str | list[str] | None:
    if items is None or isinstance(items, str):
        return items
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise Refused("items of token ids go with label_token_ids", param="items")
    return texts


def _choices(desk: RequestContext, words: Sequence[str]) -> tuple[Choice, ...]:
    return make_choices(words, desk.service.vocabulary.encode)


async def _ask(
    desk: RequestContext,
    body: JobBody,
    request: HttpRequest,
    questions: Sequence[Conversation],
    sampling: Sampling,
) -> _Asked | None:
    """The answers to conversations; None when the client left."""
    salt, service = body.cache_salt or "", desk.service

    def cut() -> list[Prompt]:
        return [service.prompt(list(q.messages), list(q.documents), salt) for q in questions]

    return await _run(desk, body, request, await run_in_threadpool(cut), sampling)


async def _run(
    desk: RequestContext,
    body: JobBody,
    request: HttpRequest,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> _Asked | None:
    if not 1 <= len(prompts) <= MAX_QUESTIONS:
        raise Refused(f"{len(prompts)} questions; a request may hold 1 to {MAX_QUESTIONS}")
    adapter = adapter_of(desk.service, body.model)
    job_id = f"job-{desk.new_id()}"
    requests = [
        Request(
            id=f"{job_id}-{index}",
            prompt=prompt,
            sampling=sampling,
            salt=body.cache_salt or "",
            adapter=adapter,
            priority=body.priority or 0,
            retention=Retention.SHARED,
        )
        for index, prompt in enumerate(prompts)
    ]
    flight = depart(desk.service, desk.metrics, requests)
    answers = await unless_gone(request, flight, gather(flight, len(requests)))
    if answers is None:
        return None
    return _Asked(job_id, desk.created(), adapter or desk.service.name, answers)


def _json(shape: Struct) -> Response:
    return Response(msgspec.json.encode(shape), media_type="application/json")
