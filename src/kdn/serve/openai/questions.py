"""One-token questions: /v1/score, /classify and /v1/decisions.

Two shapes of score are in use: pairs of texts (`text_1`/`text_2`, `queries`/`documents` and the
like), answered with how likely Yes is; and `query`, `items` and `label_token_ids`, answered with
the probability of each label token after query and item as they are, without a chat template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import Struct

from kdn.core import Prompt, Sampling, TokenIds
from kdn.machine.text import counted
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
from kdn.serve.limits import MAX_QUESTIONS, MAX_SCORES, bounded_router
from kdn.serve.openai.context import (
    HttpJob,
    RequestContext,
    check_ids,
    refuse_unsupported,
)
from kdn.serve.openai.lengths import Lengths
from kdn.serve.openai.requests import ClassifyBody, DecisionBody, JobBody, ScoreBody
from kdn.serve.openai.responses import JobAnswer, json_response, usage_report
from kdn.serve.openai.streams import GatheredAnswer
from kdn.serve.service import ServedModel

__all__ = ["question_routes"]

_PART_TOKENS = 1 << 18
"""So many tokens of one HTTP request wait in the engine's queue at one time, and a prompt's beyond."""


class _Score(Struct):
    index: int
    score: float
    object: str = "score"


class _Classified(Struct):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class _Decision(Struct):
    index: int
    decision: bool
    probability: float
    """Of yes."""


class _List(JobAnswer, kw_only=True):
    data: Sequence[_Score | _Classified | _Decision]


class _LabelScores(JobAnswer, kw_only=True):
    """`scores[item][label]` in the order of `items` and `label_token_ids`."""

    object: str = "scoring"
    scores: list[list[float]]


@dataclass(frozen=True)
class _Asked:
    """What came back for each prompt."""

    job: HttpJob
    answers: list[GatheredAnswer]

    def probabilities_of(self, choices: Sequence[Choice]) -> list[ChoiceProbabilities]:
        return [read_probabilities(choices, a.tokens[0], a.ended.usage) for a in self.answers]

    def response(self, kind: type[JobAnswer], **more: Any) -> Response:
        """`kind` filled with what the job has in common, and `more`."""
        usages = [answer.ended.usage for answer in self.answers]
        usage, job = usage_report(usages, usages), self.job
        return json_response(
            kind(id=job.id, created=job.created, model=job.model, usage=usage, **more)
        )


def question_routes(context: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = bounded_router()

    @router.post("/score")
    @router.post("/v1/score")
    async def score(body: ScoreBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        _refuse_unheeded(body)
        if body.label_token_ids is not None:
            return await _score_labels(context, body, http)
        pairs, choices = _pairs(body), _choices(context, body, YES_NO)
        ask = [partial(pair_question, a, b, body.instruction) for a, b in pairs]
        asked = await _ask(context, body, http, ask, choices)
        found = asked.probabilities_of(choices)
        return asked.response(
            _List, data=[_Score(i, v.probabilities[0]) for i, v in enumerate(found)]
        )

    @router.post("/classify")
    @router.post("/v1/classify")
    async def classify(body: ClassifyBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        texts = [body.input] if isinstance(body.input, str) else body.input
        choices = await context.in_thread(_choices, context, body, body.labels)
        names = [choice.name for choice in choices]
        ask = [partial(classify_question, text, names, body.instruction) for text in texts]
        asked = await _ask(context, body, http, ask, choices)
        data = [
            _Classified(index, one.best, list(one.probabilities), len(choices))
            for index, one in enumerate(asked.probabilities_of(choices))
        ]
        return asked.response(_List, data=data)

    @router.post("/v1/decisions")
    async def decide(body: DecisionBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        choices = _choices(context, body, YES_NO)
        ask = [partial(decision_question, body.input, one) for one in body.questions]
        asked = await _ask(context, body, http, ask, choices)
        data = [
            _Decision(index, one.best == YES_NO[0], one.probabilities[0])
            for index, one in enumerate(asked.probabilities_of(choices))
        ]
        return asked.response(_List, data=data)

    return router


async def _score_labels(context: RequestContext, body: ScoreBody, http: HttpRequest) -> Response:
    """Label tokens after query and item; shares among the labels, or probabilities among all tokens."""
    model, _ = context.find(body.model)
    labels, vocabulary = tuple(body.label_token_ids or ()), model.vocabulary
    check_ids(labels, vocabulary.vocab_size, "label_token_ids")
    if not labels or len(set(labels)) < len(labels):
        raise Refused("label_token_ids must name tokens, each once", param="label_token_ids")
    allowed = labels if body.apply_softmax else ()
    sampling = Sampling(max_tokens=1, ignore_eos=True, allowed=allowed, ranked=labels, logprobs=0)
    job, items = context.job("job", body, http), body.items or ()
    num_items = 1 if isinstance(items, str) else max(len(items), 1)
    if num_items * len(labels) > MAX_SCORES:
        raise Refused(
            f"{counted(num_items, 'item')} with {counted(len(labels), 'label')} each; a request may ask for "
            f"{MAX_SCORES} scores: send several",
            param="items",
        )
    prompts = partial(_label_prompts, model, body)
    asked = await _run(context, job, http, prompts, num_items, sampling)
    choices = [Choice(str(token), token) for token in labels]
    if body.apply_softmax:
        scores = [list(one.probabilities) for one in asked.probabilities_of(choices)]
    else:
        scores = [_raw(answer, labels) for answer in asked.answers]
    return asked.response(_LabelScores, scores=scores)


def _raw(answer: GatheredAnswer, labels: TokenIds) -> list[float]:
    found = {other.token_id: other.logprob for other in answer.tokens[0].alternatives}
    return [math.exp(found[label]) for label in labels]


def _label_prompts(model: ServedModel, body: ScoreBody) -> Iterator[Prompt]:
    query, items = body.query, body.items
    if query is None or not items:
        raise Refused("label_token_ids go with a query and items", param="items")
    vocabulary = model.vocabulary
    start = vocabulary.bos_ids
    every = [items] if isinstance(items, str) else items
    for given in (query, *every):
        if not isinstance(given, str):
            check_ids(given, vocabulary.vocab_size, "items")
    lengths = Lengths(model, "items")
    for index, item in enumerate(every):
        texts = [given for given in (query, item) if isinstance(given, str)]
        num_ids = sum(len(given) for given in (query, item) if not isinstance(given, str))
        lengths.check(index, texts, num_ids)
    if not (query or all(every)):
        raise Refused("query and item are both empty", param="items")

    def ids(given: str | list[int]) -> TokenIds:
        return vocabulary.encode(given) if isinstance(given, str) else tuple(given)

    asked = ids(query)
    for item in every:
        own = ids(item)
        first, second = (own, asked) if body.item_first else (asked, own)
        yield glued((*start, *first), second)


_SIDES = (("text_1", "queries", "data_1"), ("text_2", "documents", "data_2", "items"))


def _refuse_unheeded(body: ScoreBody) -> None:
    """Raises Refused for what the other shape of score takes, and for one side of pairs given twice."""
    if body.label_token_ids is not None:
        unheeded = [*_SIDES[0], *_SIDES[1][:-1], "instruction"]
    else:
        sides = [[name for name in side if getattr(body, name) is not None] for side in _SIDES]
        unheeded = ["apply_softmax", "item_first", *(name for side in sides for name in side[1:])]
        unheeded += ["query"] if sides[0] else []
    name = next((one for one in unheeded if getattr(body, one) not in (None, False)), None)
    if name is not None:
        raise Refused(
            "give text_1 and text_2 under one name each, or query, items and label_token_ids: "
            f"{name} would not be heeded",
            param=name,
        )


def _pairs(body: ScoreBody) -> list[tuple[str, str]]:
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
    if len(queries) == 1 and texts:
        queries = queries * len(texts)
    if len(queries) != len(texts) or not texts:
        raise Refused(
            f"{counted(len(queries), 'text')} on one side cannot be paired with {len(texts)} on the other: "
            "give as many, or one and many",
            param="text_2",
        )
    return list(zip(queries, texts, strict=True))


def _texts_only(items: str | list[str | list[int]] | None) -> str | list[str] | None:
    if items is None or isinstance(items, str):
        return items
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise Refused("items of token ids go with label_token_ids", param="items")
    return texts


def _choices(context: RequestContext, body: JobBody, words: Sequence[str]) -> tuple[Choice, ...]:
    return make_choices(words, context.find(body.model)[0].vocabulary.encode)


async def _ask(
    context: RequestContext,
    body: JobBody,
    http: HttpRequest,
    questions: Sequence[Callable[[], Conversation]],
    choices: Sequence[Choice],
) -> _Asked:
    """The answers to conversations, each one of `choices`. They are made when their turn comes: a long
    query stands in each of a thousand pairs."""
    job = context.job("job", body, http)

    def prompts() -> Iterator[Prompt]:
        return _prompts(job.served, questions, job.salt)

    return await _run(context, job, http, prompts, len(questions), wanted(choices))


def _prompts(
    model: ServedModel, questions: Sequence[Callable[[], Conversation]], salt: str
) -> Iterator[Prompt]:
    """One of each question, as they are wanted. One whose texts are too long is refused before the first.

    A text that many share, such as the query of a thousand pairs, is read once.
    """
    lengths = Lengths(model, "messages")
    for index, question in enumerate(questions):
        asked = question()
        texts = [one.content for one in asked.messages] + [one.text for one in asked.documents]
        lengths.check(index, texts)
    make = model.prompts.repeating()
    every = (question() for question in questions)
    return (make.segments(one.messages, one.documents, salt) for one in every)


async def _run(
    context: RequestContext,
    job: HttpJob,
    http: HttpRequest,
    prompts: Callable[[], Iterator[Prompt]],
    num_questions: int,
    sampling: Sampling,
) -> _Asked:
    if not 1 <= num_questions <= MAX_QUESTIONS:
        raise Refused(
            f"{counted(num_questions, 'question')}; a request may hold 1 to {MAX_QUESTIONS}"
        )
    made = await context.in_thread(prompts)
    part = await context.in_thread(_part, made)
    answers: list[GatheredAnswer] = []
    with context.hold(job, num_questions, sum(prompt.num_tokens for prompt in part)):
        while part:
            requests = [job.request(i, one, sampling) for i, one in enumerate(part, len(answers))]
            answers += await context.answers(job, requests, http, held=True)
            part = await context.in_thread(_part, made)
    return _Asked(job, answers)


def _part(prompts: Iterator[Prompt]) -> list[Prompt]:
    """The next ones, as many as may wait together."""
    part: list[Prompt] = []
    num_tokens = 0
    while num_tokens < _PART_TOKENS and (prompt := next(prompts, None)) is not None:
        part.append(prompt)
        num_tokens += prompt.num_tokens
    return part
