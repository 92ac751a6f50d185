"""Which embedder finds passages: the packaged one, a BERT folder, or a model behind an address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdn.config import LibraryConfig
from kdn.errors import MissingExtra, UnknownModel
from kdn.machine.files import expanded, is_there
from kdn.model import resolve
from kdn.rag import Embedder
from kdn.rag.endpoint import OpenAiEndpoint

if TYPE_CHECKING:
    from kdn.rag.minilm import MiniLm

__all__ = ["EMBEDDER", "open_bert", "open_embedder"]

EMBEDDER = "minilm-l6"
"""The packaged sentence embedder's name among models."""


def open_embedder(settings: LibraryConfig, home: Path) -> Embedder:
    """The embedder that the settings name. Raises MissingExtra, WeightsError, EndpointFailed."""
    if settings.embedder.startswith(("http://", "https://")):
        from kdn.rag.embed_endpoint import EndpointEmbedder

        endpoint = OpenAiEndpoint(
            settings.embedder, settings.embedder_model, settings.embedder_key, timeout_s=60.0
        )
        return EndpointEmbedder(endpoint)
    return open_bert(settings.embedder, home)


def open_bert(name: str, home: Path) -> MiniLm:
    """A known embedder, or one that lies in a folder. Raises MissingExtra where there is none."""
    from kdn.rag.minilm import MiniLm

    folder = expanded(name)
    if is_there(folder) and folder.is_dir():
        return MiniLm(folder)
    try:
        return MiniLm(resolve(name, home))
    except UnknownModel as error:
        if name == EMBEDDER:
            raise MissingExtra(
                "the sentence embedder is not installed; run: kdn models get minilm-l6"
            ) from error
        raise
