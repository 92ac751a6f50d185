"""Messages and documents to a Prompt, by the chat template that was published with the model.

The template is rendered once, with a mark in place of everything that a caller wrote.  What stands
between the marks is the template's own text: only there do control tokens count.  Each piece is
tokenised alone, so that a document has the same tokens wherever it stands.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

from kdn.clock import Clock
from kdn.core import Prompt, Role, Segment, TokenIds
from kdn.errors import BadInput
from kdn.model.text.places import PlacedText, find_run, stripped_edges, text_segments
from kdn.model.text.template import Turn, TurnRenderer
from kdn.model.text.tokenizer import Tokenizer
from kdn.model.text.tools import ToolFormat, tool_format

__all__ = ["NEUTRAL_SYSTEM", "ChatOptions", "ChatTemplate", "Document", "Message"]

NEUTRAL_SYSTEM = "You are a careful assistant. Read the documents, then do what is asked."
"""The system text in front of documents. No job changes it, so that all jobs share their KV."""

_BETWEEN = "\n\n"
"""Stands after every document and instruction inside the first user turn."""
_OPENS_MARK = "\ue000"
_MARK = re.compile("\ue000([0-9]{1,6})\ue001")
_LONG_CONVERSATION = 16
_KEPT_SHAPES = 64
"""Shapes of conversations, up to 15 turns, whose template text is kept."""
_REPEATED_TEXTS = 4
"""Texts of one conversation that may come again in the next."""


@dataclass(frozen=True)
class Message:
    """One turn: `system`, `user`, `assistant` or what else the template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """A text that questions are asked about; `id` becomes the segment's source."""

    id: str | None
    text: str


@dataclass(frozen=True)
class ChatOptions:
    """What else a conversation is rendered with."""

    variables: Mapping[str, object] = field(default_factory=dict)
    """Of the template, such as `tools`."""
    continues: bool = False
    """The last message is the assistant's, and the answer goes on with it."""


@dataclass(frozen=True)
class _Turn:
    """A message of the rendered conversation, and the segments that its content is made of."""

    role: str
    parts: tuple[Segment, ...]


class ChatTemplate:
    """Cuts conversations into segments. Safe from several threads."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, clock: Clock) -> None:
        """`source` None means a base model: `template.PLAIN_TEMPLATE` is used."""
        self._renderer = TurnRenderer(
            source, clock, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
        )
        self._cut_known = lru_cache(_KEPT_SHAPES)(self._cut)
        self._tokenizer = tokenizer
        self._encode: Callable[[str], TokenIds] = tokenizer.encode
        self._remembered = _Remembered()

    def repeating(self) -> ChatTemplate:
        """The same template for many conversations that share texts: a text that comes again soon is not
        tokenised again. It holds those texts, so let it go with the conversations."""
        other = copy.copy(self)
        vars(other)["_encode"] = lru_cache(_REPEATED_TEXTS)(self._tokenizer.encode)
        return other

    def segments(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        salt: str = "",
        options: ChatOptions | None = None,
    ) -> Prompt:
        """The prompt of a conversation, ready for the assistant's next words.

        With documents: PRELUDE (neutral, the same for every job), each DOCUMENT, the caller's
        system text as INSTRUCTION, earlier turns as HISTORY, the last as QUESTION.  Without: the
        system text is the INSTRUCTION, in front.  An earlier answer that was remembered under `salt` has
        the ids that were generated then, so that a conversation sent again hits what was retained.
        Raises BadInput for a conversation that the template refuses, and for variables that hold U+E000
        or a control token: the template may print them among its own text.
        """
        if not messages:
            raise BadInput("the conversation is empty; give at least one user message")
        if options is not None and options.variables:
            bound = self._using(options.variables)
            return bound.segments(messages, documents, salt, replace(options, variables={}))
        continues = options is not None and options.continues
        if continues and messages[-1].role != "assistant":
            raise BadInput("only an assistant's message goes on; let the conversation end with one")
        known = self._remembered.known(salt, messages)
        encode = self._encoder(known)
        messages = self._as_rendered(messages)
        if documents:
            return self._with_documents(messages, documents, encode, continues=continues)
        turns = [_Turn(m.role, (encode.turn(messages, i),)) for i, m in enumerate(messages)]
        pieces = self._pieces(turns)
        return _join(pieces, turns, encode, with_prelude=False, continues=continues)

    def _using(self, variables: Mapping[str, object]) -> ChatTemplate:
        """The same template with more variables to look at. Raises BadInput for one that holds a mark or a
        control token, which would count as the template's own."""
        for name, value in variables.items():
            texts = list(_texts(value))
            if any(_OPENS_MARK in text for text in texts):
                raise BadInput(f"{name} holds the character U+E000, which kdn keeps; take it out")
            if any(map(self._tokenizer.holds_special, texts)):
                raise BadInput(f"{name} holds a control token of the model; take it out")
        other = copy.copy(self)
        vars(other)["_renderer"] = self._renderer.using(variables)
        vars(other)["_cut_known"] = partial(ChatTemplate._cut, other)  # rarely seen again
        return other

    def reads(self, name: str) -> bool:
        """Does the template look at a variable of that name?"""
        return self._renderer.reads(name)

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        """Keep an answer's ids, so that it hits when it comes back as part of a conversation.

        Not where they say more or less than `text`, as those of a stop string do that was cut off.
        """
        if self._tokenizer.decode(token_ids, special=True) == text:
            self._remembered.remember(salt, text, token_ids)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""
        return tool_format(self._renderer.source)

    def _as_rendered(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, with earlier answers as the template repeats them.

        Some templates leave the thoughts of earlier turns out.  What a template makes of an answer is
        what then stands between its own text before and after it.
        """
        if not any(message.role == "assistant" for message in messages):
            return messages
        marked = [_marked(m.role, i) for i, m in enumerate(messages)]
        pieces = self._cut_between(marked)[0::2]
        if len(pieces) != len(messages) + 1:
            return messages  # the template drops or reorders turns: told when they are joined
        shown = list(messages)
        for first in (0, 1):  # two answers in a row, shown at once, would have no mark between them
            answers = [
                i
                for i in range(first, len(messages), 2)
                if messages[i].role == "assistant" and _OPENS_MARK not in messages[i].content
            ]
            between = self._rendered_between(messages, marked, answers) if answers else {}
            for i in answers:
                shown[i] = _repeated(messages[i], between.get(i - 1), pieces[i], pieces[i + 1])
        return shown

    def _rendered_between(
        self, messages: Sequence[Message], marked: Sequence[Turn], answers: Sequence[int]
    ) -> dict[int, str]:
        """What is rendered behind each mark, and at -1 before the first, with these answers as they are."""
        turns = list(marked)
        for i in answers:
            turns[i] = {"role": messages[i].role, "content": messages[i].content}
        found = _MARK.split(self._renderer.render(turns))
        return dict(zip([-1, *map(int, found[1::2])], found[0::2], strict=True))

    def places(
        self,
        prompt: Prompt,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
    ) -> list[PlacedText]:
        """Where the texts stand in the prompt that `segments` made of them, documents first.

        Left out is what cannot be placed: an earlier answer that the template repeats in other words.
        """
        strips, tokenizer = self._renderer.strips, self._tokenizer
        texts = [*(one.text for one in documents), *(one.content for one in messages)]
        found = []
        for number, (text, (segment, first)) in enumerate(
            zip(texts, text_segments(prompt, len(texts)), strict=False)
        ):
            own = text.strip() if strips else text
            at = find_run(tokenizer.encode(own), segment.token_ids)
            if at is not None:
                edges = stripped_edges(text, tokenizer.edges(own), strips=strips)
                is_document = number < len(documents)
                name = documents[number].id if is_document else None
                place = number if is_document else None
                found.append(PlacedText(text, first + at, edges, place, name))
        return found

    def document(self, document: Document) -> Segment:
        """The segment that `segments` makes of a document."""
        return self._encoder({}).document(document)

    def _encoder(self, known: Mapping[str, TokenIds]) -> _Encoder:
        return _Encoder(self._tokenizer, self._encode, known, self._renderer.strips)

    def _with_documents(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        encode: _Encoder,
        *,
        continues: bool,
    ) -> Prompt:
        first = [encode.document(document) for document in documents]
        if messages[0].role == "system":
            first.append(encode.instruction(messages[0].content))
            messages = messages[1:]
        if not messages or messages[0].role != "user":
            raise BadInput(
                "documents stand in the first user message; let the conversation begin with one"
            )
        turns = [_Turn(m.role, (encode.turn(messages, i),)) for i, m in enumerate(messages)]
        turns[0] = _Turn(turns[0].role, (*first, *turns[0].parts))
        pieces = self._led_pieces(turns)
        return _join(pieces, turns, encode, with_prelude=True, continues=continues)

    def _led_pieces(self, turns: Sequence[_Turn]) -> list[str]:
        """The pieces after the neutral text, which opens the user turn if need be."""
        try:
            return self._pieces(turns, before=({"role": "system", "content": NEUTRAL_SYSTEM},))
        except BadInput:
            return self._pieces(turns, opening=NEUTRAL_SYSTEM + _BETWEEN)

    def _pieces(
        self, turns: Sequence[_Turn], before: Sequence[Turn] = (), opening: str = ""
    ) -> list[str]:
        """The template's own text before, between and after the parts of all turns, in order."""
        rendered, num_marks = list(before), 0
        for turn in turns:
            marks = range(num_marks, num_marks + len(turn.parts))
            content = "".join(f"\ue000{mark}\ue001" for mark in marks)
            rendered.append({"role": turn.role, "content": opening + content})
            num_marks, opening = marks.stop, ""
        found = self._cut_between(rendered)
        if found[1::2] != [str(mark) for mark in range(num_marks)]:
            raise BadInput(
                "the model's chat template drops or reorders these messages; send the turns in the "
                "order user, assistant, user, with at most one system message in front"
            )
        return found[0::2]

    def _cut_between(self, marked: Sequence[Turn]) -> list[str]:
        """The rendered conversation, cut at its marks: texts at even places, numbers at odd ones.

        Turns of marks are the same for every conversation of that shape, so a short one is rendered once,
        unless the template asks what time it is.
        """
        shape = tuple((turn["role"], turn["content"]) for turn in marked)
        is_known = len(shape) < _LONG_CONVERSATION and not self._renderer.reads_clock
        return list((self._cut_known if is_known else self._cut)(shape))

    def _cut(self, shape: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        turns = [{"role": role, "content": content} for role, content in shape]
        return tuple(_MARK.split(self._renderer.render(turns)))


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value, and the whole of it as JSON: a template may print either."""
    yield json.dumps(value, ensure_ascii=False)
    inner = [value]
    while inner:
        one = inner.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            inner += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            inner += one


def _marked(role: str, number: int) -> Turn:
    return {"role": role, "content": f"\ue000{number}\ue001"}


def _repeated(message: Message, found: str | None, before: str, after: str) -> Message:
    """The message with the text that stands between the template's own; as it is where that is not told."""
    if found is None or not (found.startswith(before) and found.endswith(after)):
        return message
    text = found[len(before) : len(found) - len(after)]
    same = len(before) + len(after) > len(found) or text.strip() == message.content.strip()
    return message if same else Message(message.role, text)


def _join(
    pieces: Sequence[str],
    turns: Sequence[_Turn],
    encode: _Encoder,
    *,
    with_prelude: bool,
    continues: bool,
) -> Prompt:
    """Template text joins the part before it; what opens the prompt is the prelude, or joins the first part.

    So the last turn's segment ends with the opening of the assistant's turn, and ends at the same
    token when the conversation is sent again with that turn in it.  What the template writes after the
    last turn is left out when the answer continues it.
    """
    if continues:
        pieces = [*pieces[:-1], ""]
    opening = encode.template(pieces[0])
    segments = [Segment(Role.PRELUDE, opening)] if with_prelude else []
    parts = [part for turn in turns for part in turn.parts]
    for i, (part, piece) in enumerate(zip(parts, pieces[1:], strict=True)):
        lead = opening if i == 0 and not with_prelude else ()
        token_ids = lead + part.token_ids + encode.template(piece)
        segments.append(Segment(part.role, token_ids, part.source))
    return Prompt(tuple(segment for segment in segments if segment.token_ids))


@dataclass(frozen=True)
class _Encoder:
    """Tokenises each piece alone, control tokens in template text only."""

    tokenizer: Tokenizer
    encode: Callable[[str], TokenIds]
    known: Mapping[str, TokenIds]
    strips: bool

    def template(self, text: str) -> TokenIds:
        return self.tokenizer.encode(text, special=True)

    def document(self, document: Document) -> Segment:
        return Segment(Role.DOCUMENT, self._own(document.text) + self.encode(_BETWEEN), document.id)

    def instruction(self, text: str) -> Segment:
        return Segment(Role.INSTRUCTION, self._own(text) + self.encode(_BETWEEN))

    def turn(self, messages: Sequence[Message], index: int) -> Segment:
        message = messages[index]
        if message.role == "assistant" and message.content in self.known:
            return Segment(Role.HISTORY, self.known[message.content])
        role = Role.QUESTION if index == len(messages) - 1 else Role.HISTORY
        if message.role == "system" and index == 0:
            role = Role.INSTRUCTION
        return Segment(role, self._own(message.content))

    def _own(self, text: str) -> TokenIds:
        return self.encode(text.strip() if self.strips else text)


class _Remembered:
    """The last answers' ids by salt and text: a turn that a client sends back must hit, token for token.

    Safe from several threads; about 1 KB an answer.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._answers: OrderedDict[tuple[str, str], TokenIds] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        """Keep an answer's ids; the oldest goes when there are too many."""
        with self._lock:
            self._answers[salt, text] = token_ids
            self._answers.move_to_end((salt, text))
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)

    def known(self, salt: str, messages: Sequence[Message]) -> dict[str, TokenIds]:
        """Text to ids for the assistant's turns among `messages`, as far as they are remembered."""
        with self._lock:
            turns = [(salt, message.content) for message in messages if message.role == "assistant"]
            return {turn[1]: self._answers[turn] for turn in turns if turn in self._answers}
