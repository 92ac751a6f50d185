"""Reranking: POST /rerank, /v1/rerank and /v2/rerank.

Jina's and Cohere's clients send `documents` and get `results`; those of text-embeddings-inference
send `texts` and get a plain list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import UNSET, Struct, UnsetType
from starlette.concurrency import run_in_threadpool

from kdn.core import Request, Usage
from kdn.rank import (
    Asking,
    Layout,
    RankedDocument,
    odds_of,
    rank_by,
    read_logits,
    wanted,
    worth_asking,
)
from kdn.serve.errors import Refused
from kdn.serve.openai.context import HttpJob, RequestContext
from kdn.serve.openai.parse import refuse_unsupported
from kdn.serve.openai.requests import RerankBody
from kdn.serve.openai.responses import JobAnswer, json_response, usage_report

__all__ = ["rerank_routes"]

MAX_DOCUMENTS = 10_000
"""Documents of one HTTP request."""
_QUEUED_TOGETHER = 512
"""Of these, how many wait in the engine's queue together."""


class _Text(Struct):
    text: str


class _Result(Struct):
    index: int
    relevance_score: float | None
    document: _Text | UnsetType = UNSET


class _Version(Struct):
    version: str


class _Meta(Struct):
    """What Cohere's clients look for."""

    api_version: _Version


class _Results(JobAnswer, kw_only=True):
    results: list[_Result]
    meta: _Meta


class _Scored(Struct):
    """An entry of text-embeddings-inference's answer."""

    index: int
    score: float | None
    text: str | UnsetType = UNSET


def rerank_routes(context: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()

    @router.post("/rerank")
    @router.post("/v1/rerank")
    async def rerank(body: RerankBody, http: HttpRequest) -> Response:
        return await _rerank(context, body, http, version="1")

    @router.post("/v2/rerank")
    async def rerank_as_cohere(body: RerankBody, http: HttpRequest) -> Response:
        return await _rerank(context, body, http, version="2")

    return router


async def _rerank(
    context: RequestContext, body: RerankBody, http: HttpRequest, version: str
) -> Response:
    refuse_unsupported(body.model_extra)
    texts = _texts(body)
    job = context.job("rerank", body)
    asking = await run_in_threadpool(
        context.service.asking,
        body.query,
        body.layout,
        body.template,
        body.instruction,
        body.truncate or body.truncation,
    )
    odds, usages = await _odds(context, http, job, asking, worth_asking(texts))
    ranking = rank_by(texts, odds, usages, body.top_n)
    if body.texts is not None:
        return json_response([_scored(one, body) for one in ranking])
    shown = version == "1" if body.return_documents is None else body.return_documents
    return json_response(
        _Results(
            id=job.id,
            created=job.created,
            model=job.model,
            results=[_result(one, body, shown=shown) for one in ranking],
            usage=usage_report(usages, usages),
            meta=_Meta(_Version(version)),
        )
    )


def _texts(body: RerankBody) -> list[str]:
    if (body.documents is None) == (body.texts is None):
        raise Refused("give the candidates as documents, or as texts", param="documents")
    if body.texts is not None:
        texts = body.texts
    else:
        texts = [one if isinstance(one, str) else one.text for one in body.documents or ()]
    if len(texts) > MAX_DOCUMENTS:
        raise Refused(
            f"{len(texts)} documents; a request may hold {MAX_DOCUMENTS}: send several",
            param="documents",
        )
    return texts


async def _odds(
    context: RequestContext, http: HttpRequest, job: HttpJob, asking: Asking, texts: Sequence[str]
) -> tuple[Mapping[str, float], list[Usage]]:
    """Log-odds of each text, a part after the other."""
    odds: dict[str, float] = {}
    usages: list[Usage] = []
    for first in range(0, len(texts), _QUEUED_TOGETHER):
        part = texts[first : first + _QUEUED_TOGETHER]
        requests = await run_in_threadpool(_requests, job, asking, part, first)
        answers = await context.answers(requests, http)
        for text, answer in zip(part, answers, strict=True):
            odds[text] = odds_of(read_logits(asking.choices, answer.tokens[0]))
            usages.append(answer.ended.usage)
    return odds, usages


def _requests(job: HttpJob, asking: Asking, texts: Sequence[str], first: int) -> list[Request]:
    sampling = replace(wanted(asking.choices), raw_logits=True)
    single_use = asking.layout is Layout.DOCUMENT_FIRST
    return [
        job.request(number, asking.prompt(text), sampling, single_use=single_use)
        for number, text in enumerate(texts, first)
    ]


def _score(one: RankedDocument, body: RerankBody) -> float | None:
    """The odds of an empty document are no number that JSON could hold."""
    if not body.raw_scores:
        return one.score
    return one.log_odds if math.isfinite(one.log_odds) else None


def _result(one: RankedDocument, body: RerankBody, *, shown: bool) -> _Result:
    return _Result(one.index, _score(one, body), _Text(one.document) if shown else UNSET)


def _scored(one: RankedDocument, body: RerankBody) -> _Scored:
    return _Scored(one.index, _score(one, body), one.document if body.return_text else UNSET)
