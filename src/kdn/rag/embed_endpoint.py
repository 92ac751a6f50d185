"""Embeddings by a model behind an address that speaks OpenAI's `/v1/embeddings`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdn.errors import EndpointFailed
from kdn.machine.text import counted
from kdn.rag.embed import Vectors, scaled
from kdn.rag.endpoint import OpenAiEndpoint

__all__ = ["EndpointEmbedder"]

_BATCH = 64
"""Texts of one call."""


class EndpointEmbedder:
    """Texts to unit vectors over HTTP. The first call tells how many numbers a vector has."""

    def __init__(self, endpoint: OpenAiEndpoint) -> None:
        """Raises EndpointFailed when the endpoint does not embed."""
        self._endpoint = endpoint
        self._dimension: int = self._call(["dimension"]).shape[1]

    @property
    def name(self) -> str:
        return f"endpoint-{self._endpoint.model}-{self._dimension}"

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Raises EndpointFailed when the endpoint gives other vectors than at first, or none."""
        found = np.zeros((len(texts), self._dimension), dtype=np.float32)
        at = 0
        for batch in (texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)):
            vectors = self._call(list(batch))
            if vectors.shape[1] != self._dimension:
                raise EndpointFailed(
                    f"{self._endpoint.model} gave {vectors.shape[1]} numbers a text, and"
                    f" {self._dimension} at first; give each model a library of its own"
                )
            found[at : at + len(batch)] = vectors
            at += len(batch)
        return scaled(found)

    def _call(self, texts: list[str]) -> Vectors:
        answer = self._endpoint.call("embeddings", {"input": texts, "encoding_format": "float"})
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointFailed(f"{self._endpoint.url} gave no embeddings: {error!r}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise EndpointFailed(
                f"{self._endpoint.url} gave {vectors.shape} numbers for {counted(len(texts), 'text')}"
            )
        return vectors
