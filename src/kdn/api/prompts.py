"""Messages and documents as prompts of one model, and the options that a request carries.

Everything that callers may hand in for a message, a document or many of them is read here, once: one
text is one item everywhere.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from kdn.core import (
    Blend,
    Constraint,
    Prompt,
    Request,
    Sampling,
    Share,
    as_many,
    text_of,
)
from kdn.errors import BadInput
from kdn.model import (
    ChatOptions,
    Document,
    LoadedModel,
    Message,
    PlacedText,
)
from kdn.rank import Conversation

__all__ = [
    "AnswerSchema",
    "Documents",
    "Messages",
    "Prompts",
    "Reuse",
    "ShareMode",
    "blending",
    "constraint_of",
    "sharing",
]

Messages = str | Message | Mapping[str, str] | Sequence[Message] | Sequence[Mapping[str, str]]
Documents = (
    str
    | Document
    | Mapping[str, str]
    | Sequence[str]
    | Sequence[Document]
    | Sequence[Mapping[str, str]]
)
Reuse = Literal["exact", "blend"]
ShareMode = Literal["exact", "published", "best"]
AnswerSchema = Constraint | Mapping[str, object] | str | type
"""A constraint, a JSON schema (a mapping, or JSON text), or a Pydantic model."""


class Prompts:
    """Makes prompts and requests of one model. Safe from several threads."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._numbers = itertools.count(1)

    def segments(
        self,
        messages: Messages,
        documents: Documents = (),
        salt: str = "",
        options: ChatOptions | None = None,
    ) -> Prompt:
        """The conversation as segments of token ids. Answers given under `salt` keep their ids."""
        turns, texts = _messages(messages), _documents(documents)
        return self._model.chat.segments(turns, texts, salt, options)

    def of_document(self, text: str, name: str | None = None, salt: str = "") -> Prompt:
        """The shortest prompt that holds a document behind the neutral prelude."""
        return self.segments([Message("user", "?")], [Document(name, text_of(text, "text"))], salt)

    def question(self, conversation: Conversation, salt: str = "") -> Prompt:
        """A conversation of the rank room as a prompt of this model."""
        return self.segments(conversation.messages, conversation.documents, salt)

    def request(
        self,
        messages: Messages,
        documents: Documents = (),
        *,
        sampling: Sampling | None = None,
        salt: str = "",
        adapter: str | None = None,
    ) -> Request:
        """A request as the engine takes it, for callers that change more of it."""
        return Request(
            id=self.new_id("r"),
            prompt=self.segments(messages, documents, salt),
            sampling=sampling or self._model.sampling,
            salt=salt,
            adapter=adapter,
        )

    def places(
        self, prompt: Prompt, messages: Messages, documents: Documents = ()
    ) -> list[PlacedText]:
        """Where the texts stand in the prompt that `segments` made of them, documents first."""
        return self._model.chat.places(prompt, _messages(messages), _documents(documents))

    def new_id(self, kind: str) -> str:
        """An id that no other request has, in this process or another."""
        return f"{kind}{next(self._numbers)}-{uuid.uuid4().hex[:8]}"


def sharing(share: ShareMode | None) -> tuple[Share, ...]:
    """How a request says whose KV it may use.

    `"exact"`: its own model's, bit for bit; `"published"` and `"best"`: also a sibling's, as the pair's
    profile says (`kdn share profile`), within the settings' limits; None: as the settings say.  Raises
    BadInput for anything else.
    """
    return () if share is None else (Share(share),)


def blending(reuse: Reuse, ratio: float | None = None, collection: str = "") -> tuple[Blend, ...]:
    """How a request says which stored KV it may use.

    `"exact"`: only what equals a full prefill.  `"blend"`: also documents that stood elsewhere when
    they were computed; `ratio` in 0..1 of their tokens is recomputed, None leaves it to the loading
    controller and the quality guard, which knows the documents by `collection`.  Raises BadInput for
    anything else.
    """
    if reuse not in ("exact", "blend"):
        raise BadInput(f"reuse is {reuse!r}; it can be 'exact' or 'blend'")
    blend = Blend(ratio, collection)
    return (blend,) if reuse == "blend" else ()


def constraint_of(schema: AnswerSchema) -> Constraint:
    """What an answer must be: a constraint as it is, a JSON schema, or a Pydantic model's own.

    Raises BadInput for what is none of these.
    """
    if isinstance(schema, Constraint):
        return schema
    own = getattr(schema, "model_json_schema", None)
    if callable(own):
        return Constraint.json_schema(own())
    if isinstance(schema, Mapping | str):
        return Constraint.json_schema(schema)
    raise BadInput(
        "schema takes a JSON schema, a Pydantic model or a kdn.Constraint, "
        f"not {type(schema).__name__}"
    )


def _messages(given: object) -> list[Message]:
    if isinstance(given, str):
        return [Message("user", text_of(given, "prompt"))]
    if given is None or isinstance(given, bytes):
        raise BadInput(f"a prompt is a text or a list of messages, not {type(given).__name__}")
    messages = [_message(one) for one in as_many(given, "messages", Message)]
    if not messages:
        raise BadInput("a prompt without messages; give at least one")
    return messages


def _message(given: object) -> Message:
    if isinstance(given, Message):
        return replace(given, content=text_of(given.content, "the content of a message"))
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        found = sorted(map(str, given)) if isinstance(given, Mapping) else repr(given)[:60]
        raise BadInput(f"a message has a role and a content, not {found}")
    role, content = given["role"], given["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadInput("role and content of a message are texts")
    return Message(
        text_of(role, "the role of a message"), text_of(content, "the content of a message")
    )


def _documents(given: object) -> list[Document]:
    return [_document(one) for one in as_many(given, "documents", Document)]


def _document(given: object) -> Document:
    """A text, a Document, or a mapping with a `text` and perhaps an `id` or `title`."""
    if isinstance(given, str):
        return Document(None, text_of(given, "a document"))
    if isinstance(given, Document):
        text_of(given.text, "the text of a document")
        return given
    if isinstance(given, Mapping) and set(given) <= {"text", "id", "title"}:
        name, text = given.get("id", given.get("title")), given.get("text")
        if isinstance(text, str) and (name is None or isinstance(name, str)):
            return Document(name, text_of(text, "the text of a document"))
    raise BadInput(
        f"a document is a text, a kdn.model.Document, or a mapping with `text` and perhaps `id`,"
        f" not {given!r:.60}"
    )
