"""How a text is put to the model, so that one token answers: conversations for each kind of question.

What many questions share stands first, so that its KV is computed once: the document of several
decisions, the instruction of several rows, the query of several items.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdn.core import Prompt, Role, Segment, TokenIds
from kdn.errors import BadInput
from kdn.model import Document, Message

__all__ = [
    "YES_NO",
    "Conversation",
    "RowTemplate",
    "classify_question",
    "decision_question",
    "glued",
    "pair_question",
]

YES_NO = ("Yes", "No")
"""The choices of decisions and relevance; the first is what a score is the probability of."""


@dataclass(frozen=True)
class Conversation:
    """Messages, and documents before them."""

    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()


def decision_question(text: str, question: str) -> Conversation:
    """A yes/no question about a text that others may be asked about too."""
    asked = f"{question.strip()}\nAnswer with Yes or No only."
    return Conversation((Message("user", asked),), (Document(None, text),))


def pair_question(query: str, text: str, instruction: str | None = None) -> Conversation:
    """Does `text` answer `query`? The query is shared by the texts that it is paired with."""
    said = instruction or "Judge whether the document answers the query."
    frame = f"{said} Answer with Yes or No only.\n\nQuery: {query.strip()}"
    return Conversation((Message("system", frame), Message("user", f"Document: {text.strip()}")))


def classify_question(
    text: str, labels: Sequence[str], instruction: str | None = None
) -> Conversation:
    """Which of `labels` (at most a few dozen) fits the text?"""
    said = instruction or "Choose the label that fits the text best."
    frame = f"{said}\nLabels: {', '.join(labels)}.\nAnswer with the label only."
    return Conversation((Message("system", frame), Message("user", text)))


def glued(first: TokenIds, second: TokenIds) -> Prompt:
    """Two runs of tokens as they are, without any template; the first is what others may share."""
    segments = (Segment(Role.DOCUMENT, first), Segment(Role.QUESTION, second))
    return Prompt(tuple(segment for segment in segments if segment.token_ids))


class RowTemplate:
    """A text with `{column}` places, filled from rows; `{{` and `}}` stand for braces.

    A column may have any name without braces: what stands between them is the name, as it is.  The
    lines before that of the first place (or, on one line, the words before it) are said once, as the
    system message; all rows share its KV.
    """

    def __init__(self, template: str) -> None:
        """Raises BadInput for a template without a place, or with a broken one."""
        self._pieces = _pieces(template)
        self.columns = tuple(dict.fromkeys(self._pieces[1::2]))
        if not self.columns or "" in self.columns:
            raise BadInput(f"the template {template!r} names no column: write e.g. {{text}}")
        lead = self._pieces[0]
        first = lead.rfind("\n") + 1 or len(lead)
        self._head, self._pieces[0] = lead[:first].strip(), lead[first:]

    def fill(self, row: Mapping[str, str]) -> Conversation:
        """The conversation of one row. Raises BadInput when a column is not there."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise BadInput(
                f"the template asks for {missing[0]!r}; the columns are {', '.join(row)}"
            )
        said = [row[piece] if place % 2 else piece for place, piece in enumerate(self._pieces)]
        asked = Message("user", "".join(said))
        return Conversation((Message("system", self._head), asked) if self._head else (asked,))


_PLACE = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")


def _pieces(template: str) -> list[str]:
    """Text, column, text, column, ..., text. Raises BadInput for a brace without its other half."""
    pieces = [""]
    for place, found in enumerate(_PLACE.split(template)):
        if place % 2 == 0:
            pieces[-1] += found
        elif found in ("{{", "}}"):
            pieces[-1] += found[0]
        elif len(found) == 1:
            raise BadInput(
                f"the template cannot be read: a lone {found!r}; write {{column}} for a place,"
                " and {{ or }} for a brace"
            )
        else:
            pieces += [found[1:-1], ""]
    return pieces
