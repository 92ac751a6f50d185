"""Text to vectors: the interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedder", "Vectors", "scaled"]

Vectors = NDArray[np.float32]
"""[texts, dimension], each row of length 1 (or 0 for a text without words)."""


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
