"""POST /tokenize and /detokenize: what a text costs before it is sent."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from kdn.core import TokenIds
from kdn.serve.errors import Refused
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.parse import adapter_of, check_ids, conversation
from kdn.serve.openai.requests import DetokenizeBody, TokenizeBody

__all__ = ["token_routes"]


class _Tokenized(msgspec.Struct, omit_defaults=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class _Detokenized(msgspec.Struct):
    prompt: str


def token_routes(desk: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()
    vocabulary = desk.service.vocabulary

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        adapter_of(desk.service, body.model)
        ids = await run_in_threadpool(_ids, desk, body)
        found = _Tokenized(len(ids), desk.service.max_context, list(ids))
        if body.return_token_strs:
            found.token_strs = [vocabulary.token_text(token_id) for token_id in ids]
        return Response(msgspec.json.encode(found), media_type="application/json")

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        adapter_of(desk.service, body.model)
        check_ids(body.tokens, vocabulary.vocab_size, "tokens")
        text = await run_in_threadpool(vocabulary.decode, body.tokens, special=True)
        return Response(msgspec.json.encode(_Detokenized(text)), media_type="application/json")

    return router


def _ids(desk: RequestContext, body: TokenizeBody) -> TokenIds:
    if (body.prompt is None) == (body.messages is None):
        raise Refused("give either prompt or messages", param="prompt")
    if body.messages is not None:
        messages, documents = conversation(body.messages, body.documents)
        return desk.service.prompt(messages, documents, "").token_ids
    vocabulary = desk.service.vocabulary
    begin = () if body.add_special_tokens is False else vocabulary.bos_ids
    return begin + vocabulary.encode(body.prompt or "", special=True)
