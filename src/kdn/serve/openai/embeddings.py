"""POST /v1/embeddings: texts, or the embedder's own token ids, to unit vectors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from kdn.errors import MissingExtra
from kdn.machine.text import counted
from kdn.serve.errors import Refused
from kdn.serve.limits import bounded_router
from kdn.serve.openai.context import RequestContext, check_ids, refuse_unsupported
from kdn.serve.openai.requests import EmbeddingBody
from kdn.serve.openai.responses import Embedding, EmbeddingList, EmbeddingUsage, json_response
from kdn.serve.service import ServedEmbedder, TextEmbedder

__all__ = ["embedding_routes"]

_THREADS = 4
"""Requests that are embedded at one time: prompts do not wait for them."""
_CHARS_PER_TOKEN = 64
"""No text of more characters a token is tokenised only to find that it is too long."""


def embedding_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router, threads = bounded_router(), CapacityLimiter(_THREADS)

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingBody) -> Response:
        refuse_unsupported(body.model_extra)
        served = _embedder(context, body.model)
        return json_response(await run_sync(_embed, served, body, limiter=threads))

    return router


def _embedder(context: RequestContext, model: str | None) -> ServedEmbedder:
    """The embedder that `model` names. Raises Refused for another name, MissingExtra without one."""
    served = context.models.first.embedder
    if served is None:
        raise MissingExtra("the sentence embedder is not installed; run: kdn models get minilm-l6")
    if model not in (None, served.name):
        raise Refused(
            f"the model {model!r} makes no embeddings here; {served.name} does",
            param="model",
            code="model_not_found",
            status=404,
        )
    return served


def _embed(served: ServedEmbedder, body: EmbeddingBody) -> EmbeddingList:
    embedder = served.open()
    if body.dimensions not in (None, embedder.dimension):
        raise Refused(
            f"this embedder has {embedder.dimension} dimensions and cannot cut them",
            param="dimensions",
        )
    cut = body.truncate_prompt_tokens is not None
    rows = [_ids(one, served, embedder, cut=cut) for one in _inputs(body)]
    if not rows:
        raise Refused("there is no input to embed", param="input")
    packed = body.encoding_format == "base64"
    data = [
        Embedding(index, _base64(vector) if packed else vector)
        for index, vector in enumerate(embedder.embed_ids(rows).tolist())
    ]
    num_tokens = sum(map(len, rows))
    return EmbeddingList(data, served.name, EmbeddingUsage(num_tokens, num_tokens))


def _inputs(body: EmbeddingBody) -> list[str | list[int]]:
    """A text, texts, ids or lists of ids, all as a list."""
    given = body.input
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    return [ids] if ids else [one for one in given if not isinstance(one, int)]


def _ids(
    given: str | list[int], served: ServedEmbedder, embedder: TextEmbedder, *, cut: bool
) -> list[int]:
    """The tokens that are read of one input, between their two marks."""
    most = served.max_tokens
    if not given:
        raise Refused("an input is empty: there is nothing to embed", param="input")
    begin, end = embedder.token_ids("")
    if isinstance(given, str):
        if cut:
            given = given[: _CHARS_PER_TOKEN * most]
        elif len(given) > _CHARS_PER_TOKEN * most:
            raise _too_long(f"{len(given)} characters", most)
        ids = embedder.token_ids(given)
    else:
        check_ids(given, embedder.vocab_size, "input")
        ids = given if given[0] == begin else [begin, *given, end]
    if len(ids) > most and not cut:
        raise _too_long(f"{counted(len(ids), 'token')}", most)
    return ids if len(ids) <= most else [*ids[: most - 1], end]


def _too_long(size: str, most: int) -> Refused:
    return Refused(
        f"an input has {size} and the embedder reads {counted(most, 'token')}: send shorter pieces, or "
        "truncate_prompt_tokens: -1 to embed the beginning",
        param="input",
        code="context_length_exceeded",
    )


def _base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients unpack it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
