"""Doors to reranking: /rerank, /v1/rerank and /v2/rerank.

Jina's and Cohere's clients send `documents` and get `results`; those of text-embeddings-inference
send `texts` and get a plain list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import UNSET, Struct, UnsetType
from starlette.concurrency import run_in_threadpool

from kdn.core import Prompt, Request, Retention, Usage
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
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.encode import usage_report
from kdn.serve.openai.parse import adapter_of
from kdn.serve.openai.requests import RerankBody
from kdn.serve.openai.responses import UsageReport
from kdn.serve.openai.streams import depart, gather, unless_gone
from kdn.serve.openai.unsupported import refuse_unsupported

__all__ = ["rerank_routes"]

MAX_DOCUMENTS = 10_000
"""Documents of one HTTP request."""
AT_ONCE = 512
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


class _Results(Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    results: list[_Result]
    usage: UsageReport
    meta: _Meta


class _Scored(Struct):
    """An entry of text-embeddings-inference's answer."""

    index: int
    score: float | None
    text: str | UnsetType = UNSET


def rerank_routes(desk: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()

    @router.post("/rerank")
    @router.post("/v1/rerank")
    async def rerank(body: RerankBody, request: HttpRequest) -> Response:
        return await _rerank(desk, body, request, version="1")

    @router.post("/v2/rerank")
    async def rerank_as_cohere(body: RerankBody, request: HttpRequest) -> Response:
        return await _rerank(desk, body, request, version="2")

    return router


async def _rerank(
    desk: RequestContext, body: RerankBody, request: HttpRequest, version: str
) -> Response:
    refuse_unsupported(body.model_extra)
    texts = _texts(body)
    adapter = adapter_of(desk.service, body.model)
    asking = await run_in_threadpool(
        desk.service.asking,
        body.query,
        body.layout,
        body.template,
        body.instruction,
        body.truncate or body.truncation,
    )
    job_id = f"rerank-{desk.new_id()}"
    asked = await _odds(desk, body, request, asking, texts, (job_id, adapter))
    if asked is None:
        return Response(status_code=499)
    odds, usages = asked
    ranking = rank_by(texts, odds, usages, body.top_n)
    if body.texts is not None:
        return _json([_scored(one, body) for one in ranking])
    shown = version == "1" if body.return_documents is None else body.return_documents
    results = [_result(one, body, shown=shown) for one in ranking]
    return _json(
        _Results(
            id=job_id,
            created=desk.created(),
            model=adapter or desk.service.name,
            results=results,
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
    desk: RequestContext,
    body: RerankBody,
    request: HttpRequest,
    asking: Asking,
    texts: Sequence[str],
    job: tuple[str, str | None],
) -> tuple[Mapping[str, float], list[Usage]] | None:
    """Log-odds of each distinct text that is not empty, a part after the other; None when the
    client left."""
    odds: dict[str, float] = {}
    usages: list[Usage] = []
    distinct = worth_asking(texts)
    for first in range(0, len(distinct), AT_ONCE):
        part = distinct[first : first + AT_ONCE]
        prompts = await run_in_threadpool(_prompts, asking, part)
        requests = _requests(body, asking, prompts, job, first)
        flight = depart(desk.service, desk.metrics, requests)
        answers = await unless_gone(request, flight, gather(flight, len(requests)))
        if answers is None:
            return None
        for text, answer in zip(part, answers, strict=True):
            odds[text] = odds_of(read_logits(asking.choices, answer.tokens[0]))
            usages.append(answer.ended.usage)
    return odds, usages


def _prompts(asking: Asking, texts: Sequence[str]) -> list[Prompt]:
    return [asking.prompt(text) for text in texts]


def _requests(
    body: RerankBody,
    asking: Asking,
    prompts: Sequence[Prompt],
    job: tuple[str, str | None],
    first: int,
) -> list[Request]:
    job_id, adapter = job
    return [
        Request(
            id=f"{job_id}-{number}",
            prompt=prompt,
            sampling=replace(wanted(asking.choices), raw_logits=True),
            salt=body.cache_salt or "",
            adapter=adapter,
            priority=body.priority or 0,
            retention=Retention.SHARED,
            single_use=asking.layout is Layout.DOCUMENT_FIRST,
        )
        for number, prompt in enumerate(prompts, first)
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


def _json(shape: object) -> Response:
    return Response(msgspec.json.encode(shape), media_type="application/json")
