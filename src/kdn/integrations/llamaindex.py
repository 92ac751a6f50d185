"""kdn as a node postprocessor of LlamaIndex: what a retriever found, ranked, the best kept."""

from __future__ import annotations

from kdn.api import Kdn
from kdn.errors import BadInput, MissingExtra

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LlamaIndex's core package: pip install 'kdn[llamaindex]'"
    ) from error

__all__ = ["KdnPostprocessor"]


class KdnPostprocessor(BaseNodePostprocessor):
    """Keeps the nodes that fit a query best, best first, with kdn's score in place of the retriever's.

    `kdn` is an open model, which stays the caller's to close; the other fields are the arguments of
    `Kdn.rerank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kdn: Kdn
    top_n: int | None = 3
    layout: str = "document-first"
    template: str | None = None
    instruction: str | None = None
    adapter: str | None = None
    truncate: bool = False
    salt: str = ""

    @classmethod
    def class_name(cls) -> str:
        return "KdnPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The `top_n` best of `nodes`. Raises BadInput without a query, and other KdnError."""
        if query_bundle is None:
            raise BadInput("nodes are ranked by a query; give one")
        found = self.kdn.rerank(
            query_bundle.query_str,
            [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            self.top_n,
            layout=self.layout,
            template=self.template,
            instruction=self.instruction,
            adapter=self.adapter,
            truncate=self.truncate,
            salt=self.salt,
        )
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in found]
