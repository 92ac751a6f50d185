"""Reranking: POST /rerank, /v1/rerank and /v2/rerank.

Jina's and Cohere's clients send `documents` and get `results`; those of text-embeddings-inference
send `texts` and get a plain list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import UNSET, Struct, UnsetType

from kdn.core import Request, Usage
from kdn.errors import BadInput
from kdn.machine.text import counted
from kdn.rank import (
    TEMPLATES,
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
from kdn.serve.limits import MAX_RANKED, bounded_router, check_length, prefix_of
from kdn.serve.openai.context import HttpJob, RequestContext, document_of, refuse_unsupported
from kdn.serve.openai.lengths import Lengths
from kdn.serve.openai.requests import RerankBody
from kdn.serve.openai.responses import JobAnswer, json_response, usage_report
from kdn.serve.service import ServedModel

__all__ = ["rerank_routes"]

_PART_DOCUMENTS, _PART_CHARS = 512, 1 << 18
"""How much of one ranking is tokenised, and waits in the engine's queue, at one time."""


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
    router = bounded_router()

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
    job = context.job("rerank", body, http)
    truncate = body.truncate or body.truncation
    shorten = _Shorten(job.served, truncate, body.max_tokens_per_doc)
    asking = await context.in_thread(_asking, job.served, body, truncate=truncate)
    if not truncate and body.max_tokens_per_doc is None:
        await context.in_thread(_check_lengths, job.served, body.query, texts)
    named = job.adapter or body.adapter
    job = replace(job, adapter=job.served.reranker(body.layout, body.template, named))
    odds, usages = await _odds(context, http, job, asking, worth_asking(texts), shorten)
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


def _asking(model: ServedModel, body: RerankBody, *, truncate: bool) -> Asking:
    """Raises BadInput for a template that is none of kdn's own: over HTTP no file is read."""
    if body.template is not None and body.template not in TEMPLATES:
        names = ", ".join(sorted(TEMPLATES))
        raise BadInput(f"no template {body.template!r}; there are {names}")
    fixed = [body.query, body.instruction or ""]
    check_length(fixed, model.vocabulary, model.max_context, "query")
    return model.asking(
        body.query,
        layout=body.layout,
        template=body.template,
        instruction=body.instruction,
        truncate=truncate,
    )


def _check_lengths(model: ServedModel, query: str, texts: Sequence[str]) -> None:
    """Raises Refused where a document is too long with the query, before the first part is asked about."""
    lengths = Lengths(model, "documents")
    for index, text in enumerate(texts):
        lengths.check(index, [query, text])


def _texts(body: RerankBody) -> list[str]:
    if (body.documents is None) == (body.texts is None):
        raise Refused("give the candidates as documents, or as texts", param="documents")
    if body.texts is not None:
        texts = body.texts
    else:
        texts = [document_of(one, i).text for i, one in enumerate(body.documents or ())]
    if len(texts) > MAX_RANKED:
        raise Refused(
            f"{counted(len(texts), 'document')}; a request may hold {MAX_RANKED}: send several",
            param="documents",
        )
    return texts


async def _odds(
    context: RequestContext,
    http: HttpRequest,
    job: HttpJob,
    asking: Asking,
    texts: Sequence[str],
    shorten: _Shorten,
) -> tuple[Mapping[str, float], list[Usage]]:
    """Log-odds of each text, a part after the other."""
    odds: dict[str, float] = {}
    usages: list[Usage] = []
    requests = min(len(texts), _PART_DOCUMENTS)
    with context.hold(job, requests, min(sum(map(len, texts)), _PART_CHARS)):
        for part in _parts(texts):
            asked = await context.in_thread(_requests, job, asking, shorten, part, len(usages))
            answers = await context.answers(job, asked, http, held=True)
            for text, answer in zip(part, answers, strict=True):
                odds[text] = odds_of(read_logits(asking.choices, answer.tokens[0]))
                usages.append(answer.ended.usage)
    return odds, usages


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, so many together as may wait together."""
    part: list[str] = []
    for text in texts:
        size = sum(map(len, part)) + len(text)
        if part and (len(part) == _PART_DOCUMENTS or size > _PART_CHARS):
            yield part
            part = []
        part.append(text)
    if part:
        yield part


@dataclass(frozen=True)
class _Shorten:
    """What is read of a document, decided before it is tokenised whole."""

    model: ServedModel
    truncate: bool
    """Cut what is beyond the context, where it would be refused."""
    max_tokens: int | None

    def __call__(self, text: str) -> str:
        vocabulary, most = self.model.vocabulary, self.model.max_context
        if self.max_tokens is not None:
            ids = vocabulary.encode(prefix_of(text, vocabulary, self.max_tokens))
            if len(ids) > self.max_tokens:
                return vocabulary.decode(ids[: self.max_tokens]).rstrip("\ufffd")
        return prefix_of(text, vocabulary, most) if self.truncate else text


def _requests(
    job: HttpJob, asking: Asking, shorten: _Shorten, texts: Sequence[str], first: int
) -> list[Request]:
    """One request a text."""
    sampling = replace(wanted(asking.choices), raw_logits=True)
    single_use = asking.layout is Layout.DOCUMENT_FIRST
    return [
        job.request(number, asking.prompt(shorten(text)), sampling, single_use=single_use)
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
