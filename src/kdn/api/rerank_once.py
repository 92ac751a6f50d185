"""One ranking by itself: a model opened, asked and closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdn.api.build import open as open_model
from kdn.config import Config
from kdn.rank import Layout, Ranking, Template

__all__ = ["rerank"]


def rerank(
    query: str,
    documents: str | Sequence[str],
    top_n: int | None = None,
    *,
    model: str | Path = "smollm2-135m",
    config: Config | None = None,
    template: str | Path | Template | None = None,
    layout: str | Layout = Layout.DOCUMENT_FIRST,
) -> Ranking:
    """Open `model`, rank once as `Kdn.rerank` does, and close it again.

    For a single ranking; what was computed stays in the store.  Callers that rank often keep a
    model open and ask that.
    """
    with open_model(model, config=config) as opened:
        return opened.rerank(query, documents, top_n, template=template, layout=layout)
