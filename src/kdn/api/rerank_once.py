"""One ranking by itself: a model opened, asked and closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdn.api.build import open as open_model
from kdn.config import Config
from kdn.rank import Layout, Ranking, Template, packaged_adapters

__all__ = ["rerank", "trained_reranker"]


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
    model open and ask that.  A packaged model ranks with the adapter that was trained for it (see
    `trained_reranker`).
    """
    own = trained_reranker(model, layout, template)
    with open_model(model, config=config, adapters=own) as opened:
        return opened.rerank(
            query, documents, top_n, template=template, layout=layout, adapter=next(iter(own), None)
        )


def trained_reranker(
    model: str | Path, layout: str | Layout, template: str | Path | Template | None = None
) -> dict[str, Path]:
    """The adapter that comes with kdn to rank with this model, by its name; empty if there is none.

    It was trained on the words of the default template, so another template has none.
    """
    if template is not None:
        return {}
    return {name: path for name, path in packaged_adapters(model).items() if name == str(layout)}
