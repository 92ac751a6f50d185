"""Text to vectors: the interface, and its dull twin that needs no weights."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedder", "HashedWords", "Vectors", "scaled"]

Vectors = NDArray[np.float32]
"""[texts, dimension], each row of length 1 (or 0 for a text without words)."""

_WORD = re.compile(r"\w+")


class Embedder(Protocol):
    """Texts of like meaning get vectors of high inner product."""

    @property
    def name(self) -> str:
        """Changes whenever the vectors would."""

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A unit vector for each text, in their order; a long text counts by its beginning."""


def scaled(vectors: Vectors) -> Vectors:
    """The same rows, changed to length 1, but for rows of zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norms > 0, norms, 1)
    return vectors


class HashedWords:
    """Counts of words, each hashed to a place: finds texts that share words, knows no meaning."""

    def __init__(self, dimension: int = 256) -> None:
        self._dimension = dimension

    @property
    def name(self) -> str:
        return f"hashed-words-{self._dimension}"

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                row[zlib.crc32(word.encode()) % self._dimension] += 1.0
        return scaled(vectors)
