"""How published rerankers want to be asked: texts with places, and the tokens that they answer with.

A template that begins with words of its own has its documents computed after them: such blocks
serve this template alone.  Only `instruct`, which has no words of its own but the model's chat
template, shares its documents' blocks with answers.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from kdn.errors import BadInput
from kdn.machine.text import read_text
from kdn.rank.layouts import RELEVANCE, Layout

__all__ = ["TEMPLATES", "Template", "find_template"]

_PLACES = re.compile(r"\{(bos|instruction|query|document)\}")


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to ask. Texts hold `{document}`, `{query}` and, if wanted, `{instruction}` and `{bos}`."""

    name: str = "own"
    document_first: str | None = None
    """The prompt with the document before the query; None where this order is not supported."""
    query_first: str | None = None
    yes: str = "Yes"
    """The word whose token means that the document belongs to the query."""
    no: str | None = "No"
    """The other word; None when the logit of `yes` is the score, as some rerankers are trained."""
    instruction: str = RELEVANCE
    """What is asked unless the caller says otherwise."""
    tokens: tuple[str, ...] = ()
    """Special tokens that the model must know, or the prompt would mean something else to it."""

    @property
    def has_own_prelude(self) -> bool:
        """True when documents stand after this template's words, so that its blocks are its own."""
        return self.document_first is not None or self.query_first is not None

    def pieces(self, layout: Layout) -> list[str]:
        """Text, place, text, place, ..., text. Raises BadInput when there is no such layout."""
        text = self.document_first if layout is Layout.DOCUMENT_FIRST else self.query_first
        if text is None:
            raise BadInput(f"the template {self.name!r} has no {layout} form; use the other layout")
        return _PLACES.split(text)


_BGE = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query "
    "by providing a prediction of either 'Yes' or 'No'."
)
_QWEN_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_QWEN_END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

TEMPLATES: dict[str, Template] = {
    "instruct": Template(name="instruct"),
    "qwen3-reranker": Template(
        name="qwen3-reranker",
        document_first=_QWEN_SYSTEM
        + "<Document>: {document}\n<Instruct>: {instruction}\n<Query>: {query}"
        + _QWEN_END,
        query_first=_QWEN_SYSTEM
        + "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        + _QWEN_END,
        yes="yes",
        no="no",
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        tokens=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    ),
    "bge-reranker-v2-gemma": Template(
        name="bge-reranker-v2-gemma",
        document_first="{bos}B: {document}\nA: {query}\n{instruction}",
        query_first="{bos}A: {query}\nB: {document}\n{instruction}",
        no=None,
        instruction=_BGE,
    ),
    "bge-reranker-v2-minicpm": Template(
        name="bge-reranker-v2-minicpm",
        document_first="{bos}B: {document}\nA: {query}\n{instruction}",
        query_first="{bos}A: {query}\nB: {document}\n{instruction}",
        no=None,
        instruction=_BGE,
    ),
}
"""By name: any chat model as it is, and the published decoder rerankers (their last layer's score)."""


def find_template(given: str | Path | Template | None) -> Template:
    """A template by name, or out of a TOML file whose keys are `Template`'s; None is `instruct`.

    Raises BadInput for an unknown name and for a file that says nothing, or too much.
    """
    if isinstance(given, Template):
        return given
    if given is None:
        return TEMPLATES["instruct"]
    if str(given) in TEMPLATES:
        return TEMPLATES[str(given)]
    path = Path(given)
    if path.suffix != ".toml":
        known = ", ".join(sorted(TEMPLATES))
        raise BadInput(f"no template is called {str(given)!r}; there are {known}, or a .toml file")
    try:
        told = tomllib.loads(read_text(path))
        template = msgspec.convert({"name": path.stem, **told}, Template)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise BadInput(f"{path}: not a reranking template: {error}") from error
    _refuse_broken(template, path)
    return template


def _refuse_broken(template: Template, path: Path) -> None:
    """A text without its places, or with them in the order of the other layout, is a mistake."""
    for layout in Layout:
        text = template.document_first if layout is Layout.DOCUMENT_FIRST else template.query_first
        if text is None:
            continue
        places = [place for place in _PLACES.split(text)[1::2] if place in ("query", "document")]
        wanted = ["query", "document"] if layout is Layout.QUERY_FIRST else ["document", "query"]
        if places != wanted:
            key = layout.replace("-", "_")
            raise BadInput(
                f"{path}: {key} must hold {{{wanted[0]}}} once and then {{{wanted[1]}}} once; "
                f"it holds {places or 'neither'}"
            )
    if not template.has_own_prelude:
        raise BadInput(f"{path}: give document_first, query_first, or both, as the prompt's text")
