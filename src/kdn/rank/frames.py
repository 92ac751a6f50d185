"""What stands around a document when it is ranked: made once a query, filled once a candidate.

Document first, a frame ends each document's segment where an answer's prompt ends it, so that both
name its blocks alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdn.core import Prompt, Role, Segment, TokenIds
from kdn.errors import BadInput, PromptTooLong
from kdn.machine.text import counted
from kdn.model import ChatTemplate, Document, Tokenizer
from kdn.rank.choices import Choice, make_choices
from kdn.rank.layouts import Layout, relevance_question
from kdn.rank.templates import Template

__all__ = ["Asking", "Frame", "frame_of", "yes_and_no"]

_PROBE = "document"


@dataclass(frozen=True)
class Frame:
    """A query, its instruction and the model's own marks around the place of a document."""

    before: tuple[Segment, ...]
    role: Role
    """Of the segment that the document stands in: the last segment of a prompt is never kept."""
    encode: Callable[[str], TokenIds]
    following: TokenIds
    """Joined to the document's segment."""
    after: tuple[Segment, ...]

    def prompt(self, text: str) -> Prompt:
        """The prompt that asks about `text`."""
        own = Segment(self.role, self.encode(text) + self.following)
        return Prompt((*self.before, own, *self.after))

    def shortened(self, text: str, most_tokens: int, tokenizer: Tokenizer) -> Prompt:
        """The prompt of as much of the beginning of `text` as fits into `most_tokens`.

        Raises PromptTooLong when not even its first token fits.
        """
        prompt, ids = self.prompt(text), tokenizer.encode(text)
        size = len(ids)
        while prompt.num_tokens > most_tokens and size > 1:
            size = max(size - (prompt.num_tokens - most_tokens), 1)
            prompt = self.prompt(tokenizer.decode(ids[:size]))
        if prompt.num_tokens > most_tokens:
            raise PromptTooLong(
                f"the query alone takes {counted(prompt.num_tokens, 'token')} and {most_tokens} fit; "
                "shorten it"
            )
        return prompt


@dataclass(frozen=True)
class Asking:
    """How documents are asked about one query: each one's prompt, and the tokens that answer it."""

    prompt: Callable[[str], Prompt]
    choices: tuple[Choice, ...]
    layout: Layout


def frame_of(
    query: str,
    template: Template,
    layout: Layout,
    chat: ChatTemplate,
    tokenizer: Tokenizer,
    instruction: str | None = None,
) -> Frame:
    """The frame of one query. Raises BadInput for an empty query and for tokens that are not there."""
    if not query.strip():
        raise BadInput("the query is empty; say what the documents are to be ranked by")
    said = instruction or template.instruction
    if template.has_own_prelude:
        _refuse_unknown(template, tokenizer)
        return _own_frame(query, said, template, layout, tokenizer)
    if layout is Layout.QUERY_FIRST:
        return _query_first(query, said, chat)
    asked = relevance_question(query, Document(None, _PROBE), layout, said)
    before, document, *after = chat.segments(asked.messages, asked.documents).segments

    def encode(text: str) -> TokenIds:
        return chat.document(Document(None, text)).token_ids

    following = document.token_ids[len(encode(_PROBE)) :]
    return Frame((before,), Role.DOCUMENT, encode, following, tuple(after))


def _query_first(query: str, said: str, chat: ChatTemplate) -> Frame:
    """Query and instruction lead, as the system's words; the document ends the prompt."""
    chat = chat.repeating()

    def segments(text: str) -> tuple[Segment, ...]:
        asked = relevance_question(query, Document(None, text), Layout.QUERY_FIRST, said)
        return chat.segments(asked.messages).segments

    *before, _ = segments(_PROBE)
    return Frame(tuple(before), Role.QUESTION, lambda text: segments(text)[-1].token_ids, (), ())


def _own_frame(
    query: str, said: str, template: Template, layout: Layout, tokenizer: Tokenizer
) -> Frame:
    """A template's own words, each piece tokenised alone, so that documents keep their tokens."""
    pieces = template.pieces(layout)
    at = pieces.index("document", 1)
    filled = {"query": query.strip(), "instruction": said.strip()}

    def ids(start: int, stop: int) -> TokenIds:
        found: list[int] = []
        for place in range(start, stop):
            piece = pieces[place]
            if place % 2 == 0:
                found.extend(tokenizer.encode(piece, special=True))
            elif piece == "bos":
                found.extend(tokenizer.encode(tokenizer.bos_token, special=True))
            else:
                found.extend(tokenizer.encode(filled[piece]))
        return tuple(found)

    def encode(text: str) -> TokenIds:
        return tokenizer.encode(text.strip())

    before, after = ids(0, at), ids(at + 1, len(pieces))
    if layout is Layout.QUERY_FIRST:
        return Frame((Segment(Role.INSTRUCTION, before),), Role.QUESTION, encode, after, ())
    lead = (Segment(Role.PRELUDE, before),) if before else ()
    return Frame(lead, Role.DOCUMENT, encode, (), (Segment(Role.QUESTION, after),))


def _refuse_unknown(template: Template, tokenizer: Tokenizer) -> None:
    for token in template.tokens:
        if len(tokenizer.encode(token, special=True)) != 1:
            raise BadInput(
                f"the template {template.name!r} needs the token {token!r}, which this model does "
                "not have: it was trained otherwise; use the template of its own family"
            )


def yes_and_no(template: Template, tokenizer: Tokenizer) -> tuple[Choice, ...]:
    """The tokens whose logits are compared; one alone where the template wants it so.

    Any model can be asked by `instruct`, whose words count by their first token.  Raises BadInput
    for a word of another template that is no single token of the model.
    """
    words = [template.yes, *([template.no] if template.no else [])]
    if not template.has_own_prelude:
        return make_choices(words, tokenizer.encode)
    choices = []
    for word in words:
        ids = tokenizer.encode(word)
        if len(ids) != 1:
            raise BadInput(
                f"the template {template.name!r} answers with {word!r}, which is "
                f"{counted(len(ids), 'token')} of this model, not one; use a template with other words"
            )
        choices.append(Choice(word, ids[0]))
    if len({choice.token_id for choice in choices}) < len(choices):
        raise BadInput(f"yes and no of the template {template.name!r} are the same token")
    return tuple(choices)
