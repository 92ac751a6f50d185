"""POST /tokenize and /detokenize: what a text costs before it is sent."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from kdn.core import TokenIds
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_COUNTED_TOKENS, bounded_router, check_length
from kdn.serve.openai.context import RequestContext, chat_prompt, check_ids, conversation
from kdn.serve.openai.requests import DetokenizeBody, TokenizeBody
from kdn.serve.openai.responses import json_response
from kdn.serve.service import ServedModel

__all__ = ["token_routes"]


class _Tokenized(msgspec.Struct, omit_defaults=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class _Detokenized(msgspec.Struct):
    prompt: str


def token_routes(context: RequestContext) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = bounded_router()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        model, _ = context.find(body.model)
        ids = await context.in_thread(_ids, model, body)
        found = _Tokenized(len(ids), model.max_context, list(ids))
        if body.return_token_strs:
            found.token_strs = [model.vocabulary.token_text(token_id) for token_id in ids]
        return json_response(found)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        vocabulary = context.find(body.model)[0].vocabulary
        check_ids(body.tokens, vocabulary.vocab_size, "tokens")
        text = await context.in_thread(vocabulary.decode, body.tokens, special=True)
        return json_response(_Detokenized(text))

    return router


def _ids(model: ServedModel, body: TokenizeBody) -> TokenIds:
    if (body.prompt is None) == (body.messages is None):
        raise Refused("give either prompt or messages", param="prompt")
    if body.messages is not None:
        messages, documents = conversation(body.messages, body.documents, model.prompts)
        return chat_prompt(model, messages, documents, "").token_ids
    vocabulary, most = model.vocabulary, max(model.max_context, MAX_COUNTED_TOKENS)
    check_length([body.prompt or ""], vocabulary, most, "prompt")
    begin = () if body.add_special_tokens is False else vocabulary.bos_ids
    return begin + vocabulary.encode(body.prompt or "", special=True)
