"""POST /v1/embeddings: texts to unit vectors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from kdn.serve.errors import Refused
from kdn.serve.limits import bounded_router
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.parse import refuse_unsupported
from kdn.serve.openai.requests import EmbeddingBody
from kdn.serve.openai.responses import Embedding, EmbeddingList, EmbeddingUsage, json_response
from kdn.serve.service import ServedModel

__all__ = ["embedding_routes"]


def embedding_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingBody) -> Response:
        refuse_unsupported(body.model_extra)
        found = await run_in_threadpool(_embed, context.model, _texts(body))
        _check_dimensions(body, found)
        shape = _shape(body, found)
        return json_response(shape)

    return router


def _texts(body: EmbeddingBody) -> list[str]:
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) < len(given):
        raise Refused(
            "token ids cannot be embedded: ids of which tokenizer? Send text", param="input"
        )
    if not texts or not all(texts):
        raise Refused("an input is empty: there is nothing to embed", param="input")
    return texts


@dataclass(frozen=True)
class Embedded:
    """One unit vector a text, in order."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int


def _embed(model: ServedModel, texts: list[str]) -> Embedded:
    embedder = model.embedder()
    vectors = embedder.embed(texts)
    return Embedded(tuple(tuple(map(float, row)) for row in vectors), embedder.count(texts))


def _check_dimensions(body: EmbeddingBody, found: Embedded) -> None:
    own = len(found.vectors[0])
    if body.dimensions not in (None, own):
        raise Refused(f"this embedder has {own} dimensions and cannot cut them", param="dimensions")


def _shape(body: EmbeddingBody, found: Embedded) -> EmbeddingList:
    packed = body.encoding_format == "base64"
    data = [
        Embedding(index, _base64(vector) if packed else list(vector))
        for index, vector in enumerate(found.vectors)
    ]
    usage = EmbeddingUsage(found.num_tokens, found.num_tokens)
    return EmbeddingList(data, body.model or "default", usage)


def _base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients unpack it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
