"""How a text is put to the model, so that one token answers: conversations for each kind of question.

What many questions share stands first, so that its KV is computed once: the document of several
decisions, the instruction of several rows, the query of several items.
"""

from __future__ import annotations

import re
import string
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
    """A text with `{column}` places, filled from rows.

    The lines before that of the first place (or, on one line, the words before it) are said once, as
    the system message; all rows share its KV.
    """

    def __init__(self, template: str) -> None:
        """Raises BadInput for a template without a place, or with a broken one."""
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise BadInput(f"the template cannot be read: {error}; write {{column}}") from error
        self.columns = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        broken = [name for name in self.columns if not re.fullmatch(r"[^{}\[\].!:]+", name)]
        if not self.columns or broken:
            raise BadInput(f"the template {template!r} names no column: write e.g. {{text}}")
        place = template.index("{" + self.columns[0])
        first = template.rfind("\n", 0, place) + 1 or place
        self._head, self._rest = template[:first].strip(), template[first:]

    def fill(self, row: Mapping[str, str]) -> Conversation:
        """The conversation of one row. Raises BadInput when a column is not there."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise BadInput(
                f"the template asks for {missing[0]!r}; the columns are {', '.join(row)}"
            )
        asked = Message("user", self._rest.format_map(dict(row)))
        return Conversation((Message("system", self._head), asked) if self._head else (asked,))
