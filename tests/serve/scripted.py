"""A stand-in for a model: answers from a script, one character a token, on a thread of its own.

It records everything it did, so that a test can compare what the server reports with them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from kdn.core import (
    Constraint,
    Finish,
    FinishReason,
    Prompt,
    Request,
    Role,
    Sampling,
    Segment,
    StreamEvent,
    Token,
    TokenIds,
    TokenProb,
    Usage,
)
from kdn.engine import EngineStat
from kdn.errors import BadInput, EngineFailed, KdnError, PromptTooLong
from kdn.model import ChatOptions, Document, Message, PlacedText, ToolFormat
from kdn.model.text.tools.hermes import Hermes
from kdn.rag import Vectors
from kdn.rank import Asking, Choice, Layout
from kdn.serve import ServedEmbedder, ServedModel, StoreNumbers

Pushed = StreamEvent | Exception | None
ANSWER = "Paris is the capital of France. It lies on the Seine."


class Characters:
    """Each character is a token whose id is its code point."""

    vocab_size = 0x110000
    bos_ids: TokenIds = ()

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        return tuple(map(ord, text))

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        return "".join(map(chr, token_ids))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


class Lengths:
    """An embedder whose vectors say how many tokens a text has; its marks are 0 and 1."""

    dimension = 2
    vocab_size = 0x110000

    def token_ids(self, text: str) -> list[int]:
        return [0, *map(ord, text), 1]

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Vectors:
        return np.array([(len(row), 0.5) for row in ids], dtype=np.float32)


class ScriptedStream:
    """Plays one answer. Events wait until somebody listens."""

    def __init__(
        self, request: Request, exact: int, answer: str, spelling: threading.Event
    ) -> None:
        self.request = request
        self._spelling = spelling
        self.cancelled = False
        self.ended = False
        self.finish: Finish | None = None
        self._exact = exact
        self._lock = threading.Lock()
        self._early: list[Pushed] = []
        self._listener: Callable[[Pushed], None] | None = None
        self._text, self._reason, self._stop = _script(request, answer)
        self.num_sent = 0

    def __iter__(self) -> Iterator[StreamEvent]:
        queue: SimpleQueue[Pushed] = SimpleQueue()
        self.on_event(queue.put)
        while (event := queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True

    def on_event(self, listener: Callable[[Pushed], None]) -> None:
        with self._lock:
            for event in self._early:
                listener(event)
            self._listener = listener

    def step(self) -> None:
        """Send one token, or the end."""
        if self.cancelled:
            self._end(FinishReason.CANCELLED)
        elif self.num_sent == len(self._text):
            self._end(self._reason)
        else:
            self._push(_token(self._text[self.num_sent], self.request.sampling))
            self.num_sent += 1

    def fail(self, error: Exception) -> None:
        self.ended = True
        self._push(error)
        self._push(None)

    def _end(self, reason: FinishReason) -> None:
        self.ended = True
        num_prompt = self.request.prompt.num_tokens
        usage = Usage(
            num_prompt,
            self.num_sent,
            exact=self._exact,
            recomputed=num_prompt - self._exact,
            queue_ms=1.0,
            ttft_ms=2.0,
            total_ms=3.0,
            tiers={"memory": self._exact} if self._exact else {},
        )
        self.finish = Finish(reason, usage, stop=self._stop, spell_prompt=self._spelled)
        self._push(self.finish)
        self._push(None)

    def _spelled(self) -> tuple[Token, ...]:
        """The prompt's tokens. Raises AssertionError in an event loop, which would wait for them."""
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise AssertionError("a prompt is spelled out in the event loop")
        self._spelling.wait()
        ids = self.request.prompt.token_ids
        return tuple(Token(one, chr(one), -0.5 if at else None) for at, one in enumerate(ids))

    def _push(self, event: Pushed) -> None:
        with self._lock:
            if self._listener is None:
                self._early.append(event)
            else:
                self._listener(event)


def _script(request: Request, answer: str) -> tuple[str, FinishReason, str | None]:
    """The whole answer beforehand: cut at the first stop string or at max_tokens."""
    sampling = request.sampling
    text = answer * 1000 if sampling.ignore_eos else answer
    cuts = [(text.index(stop), stop) for stop in sampling.stop if stop in text]
    end, stop = min(cuts, default=(len(text), None))
    if end > sampling.max_tokens:
        return text[: sampling.max_tokens], FinishReason.LENGTH, None
    return text[:end], FinishReason.STOP, stop


def _token(character: str, sampling: Sampling) -> Token:
    if sampling.logprobs is None:
        return Token(ord(character), character)
    if sampling.ranked:
        ranked = tuple(TokenProb(one, chr(one), -0.5) for one in sampling.ranked)
        return Token(ord(character), character, -0.25, ranked)
    others = [(character, -0.25), ("x", -2.0), ("y", -3.0)][: sampling.logprobs]
    alternatives = tuple(TokenProb(ord(text), text, logprob) for text, logprob in others)
    return Token(ord(character), character, -0.25, alternatives)


def no_ranking(query: str, **options: object) -> Asking:
    raise BadInput("the script has no ranking in it")


def rank_by_length(query: str, **options: object) -> Asking:
    """Asks about a document by itself, for one of two tokens; all documents are alike."""
    choices = (Choice("Yes", ord("y")), Choice("No", ord("n")))

    def prompt(text: str) -> Prompt:
        return Prompt((Segment(Role.QUESTION, tuple(map(ord, text))),))

    return Asking(prompt, choices, Layout.DOCUMENT_FIRST)


@dataclass
class ScriptedService:
    """Serves `answer` to everybody. `gate` cleared stops time, and `spelling` what spells prompts out;
    `broken` fails what runs, and a prompt that holds `fault` fails as a fault of the program would."""

    max_context: int = 4096
    name: str = "scripted"
    answer: str = ANSWER
    adapters: Sequence[str] = ("scripted-tuned",)
    with_embedder: bool = True
    fault: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    asking: Callable[..., Asking] = field(default_factory=lambda: no_ranking)
    requests: list[Request] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    compiled: list[Constraint] = field(default_factory=list)
    tool_format: ToolFormat = field(default_factory=Hermes)
    remembered: dict[tuple[str, str], TokenIds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vocabulary = Characters()
        self.gate = threading.Event()
        self.gate.set()
        self.spelling = threading.Event()
        self.spelling.set()
        self.broken: Exception | None = None
        self.pause_at: int | None = None
        """A stream that has sent so many tokens stands still until it is cancelled."""
        self._work = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="scripted", daemon=True)
        self._thread.start()

    def reads(self, name: str) -> bool:
        return False

    def repeating(self) -> ScriptedService:
        return self

    def segments(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        salt: str = "",
        options: ChatOptions | None = None,
    ) -> Prompt:
        cut = [Segment(Role.DOCUMENT, self.vocabulary.encode(d.text), d.id) for d in documents]
        turns = [f"<{message.role}>{message.content}" for message in messages]
        cut += [Segment(Role.HISTORY, self.vocabulary.encode(turn)) for turn in turns[:-1]]
        cut.append(Segment(Role.QUESTION, self.vocabulary.encode(turns[-1])))
        return Prompt(tuple(cut))

    def places(
        self, prompt: Prompt, messages: Sequence[Message], documents: Sequence[Document] = ()
    ) -> list[PlacedText]:
        """Of documents only: their characters are the prompt's first tokens."""
        found, start = list[PlacedText](), 0
        for number, one in enumerate(documents):
            edges = [(i, i + 1) for i in range(len(one.text))]
            found.append(PlacedText(one.text, start, edges, number, one.id))
            start += len(one.text)
        return found

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        self.remembered[salt, text] = token_ids

    def submit(self, request: Request) -> ScriptedStream:
        if request.prompt.num_tokens + request.sampling.max_tokens > self.max_context:
            raise PromptTooLong(f"{request.prompt.num_tokens} tokens do not fit")
        text = self.vocabulary.decode(request.prompt.token_ids)
        if self.fault is not None and self.fault in text:
            raise ZeroDivisionError(self.fault)
        with self._work:
            stream = ScriptedStream(request, self._exact(request), self.answer, self.spelling)
            self.requests.append(request)
            self.streams.append(stream)
            self._work.notify()
        return stream

    def _exact(self, request: Request) -> int:
        """Tokens shared with the beginning of any earlier prompt of the same salt."""
        ids = request.prompt.token_ids
        earlier = [r.prompt.token_ids for r in self.requests if r.salt == request.salt]
        common = max((_common(ids, other) for other in earlier), default=0)
        return min(common, len(ids) - 1) if request.reuse else 0

    def served(self) -> ServedModel:
        """As the server takes it."""
        return ServedModel(
            name=self.name,
            adapters=self.adapters,
            max_context=self.max_context,
            vocabulary=self.vocabulary,
            sampling=self.sampling,
            prompts=self,
            engine=self,
            compile=self.compiled.append,
            asking=self.asking,
            reranker=lambda _layout, _template, named: named,
            embedder=ServedEmbedder("lengths", 20, Lengths) if self.with_embedder else None,
            store_numbers=self.store_numbers,
        )

    @property
    def is_running(self) -> bool:
        return self.broken is None

    def stat(self) -> EngineStat:
        return EngineStat(0, 0, sum(not stream.ended for stream in self.streams), 100, 75)

    def store_numbers(self) -> StoreNumbers:
        return StoreNumbers({"memory": 3}, {"memory": 300}, counts={"hits": 2})

    def close(self) -> None:
        self.gate.set()
        with self._work:
            self._open = False
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: not self._open or any(self._running()))
                if not self._open:
                    return
                running = list(self._running())
            for stream in running:
                self._advance(stream)

    def _advance(self, stream: ScriptedStream) -> None:
        # A stopped clock still lets a cancelled request end, as an engine between steps would.
        while not (self.gate.wait(0.002) or stream.cancelled):
            pass
        if stream.num_sent == self.pause_at and not stream.cancelled:
            return
        if self.broken:
            stopped = EngineFailed("the engine has stopped")
            stream.fail(self.broken if isinstance(self.broken, KdnError) else stopped)
        else:
            stream.step()

    def _running(self) -> Iterator[ScriptedStream]:
        return (stream for stream in self.streams if not stream.ended)


def _common(left: TokenIds, right: TokenIds) -> int:
    count = 0
    for mine, other in zip(left, right, strict=False):
        if mine != other:
            break
        count += 1
    return count
