"""The methods over a scripted engine: which calls are made, in which groups, and what they give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from kdn.clock import ManualClock
from kdn.core import (
    Finish,
    FinishReason,
    Prompt,
    Request,
    Role,
    Sampling,
    Segment,
    Stream,
    StreamEvent,
    Token,
    Usage,
)
from kdn.errors import BadInput, Cancelled, PromptTooLong
from kdn.model import Document, Message
from kdn.rag import Hit, Part, Passage
from kdn.rag.metis import Method, QueryCalls, RagConfiguration, best_passage, synthesize

Answers = Callable[[str], tuple[str, float]]
"""A prompt's text to an answer and its tokens' log-probability."""


class Played:
    """A stream that says a word a token."""

    def __init__(self, request: Request, text: str, logprob: float) -> None:
        self.request = request
        self._text, self._logprob = text, logprob
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[StreamEvent]:
        words = self._text.split(" ")
        for number, word in enumerate(words):
            if self.cancelled.is_set():
                yield Finish(FinishReason.CANCELLED, self._usage(number))
                return
            yield Token(number, f"{' ' if number else ''}{word}", self._logprob)
        yield Finish(FinishReason.STOP, self._usage(len(words)))

    def _usage(self, completed: int) -> Usage:
        total = self.request.prompt.num_tokens
        return Usage(
            total, completed, exact=10, recomputed=total - 10, ttft_ms=5.0, tiers={"memory": 10}
        )

    def cancel(self) -> None:
        self.cancelled.set()

    def on_event(self, listener: Callable[[StreamEvent | Exception | None], None]) -> None:
        raise NotImplementedError


class Stage:
    """Makes requests of one token a character, answers by a function, and remembers them."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.requests: list[Request] = []
        self.streams: list[Played] = []

    def make(
        self, messages: Sequence[Message], documents: Sequence[Document], sampling: Sampling
    ) -> Request:
        texts = [*(one.text for one in documents), *(one.content for one in messages)]
        segments = [Segment(Role.DOCUMENT, tuple(map(ord, text))) for text in texts]
        return Request(f"r{len(self.requests)}-{id(segments)}", Prompt(tuple(segments)), sampling)

    def submit(self, request: Request) -> Stream:
        self.requests.append(request)
        text = "".join(map(chr, request.prompt.token_ids))
        self.streams.append(Played(request, *self.answers(text)))
        return self.streams[-1]

    def calls(self, group_tokens: int = 1 << 20) -> QueryCalls:
        return QueryCalls("q", self.make, self.submit, group_tokens=group_tokens)


def part(name: str, text: str, score: float = 1.0) -> Part:
    passage = Passage(f"{name}-p", name, name.title(), (), text, 5)
    return Part(name, name, name.title(), text, 5, (passage,), (Hit(passage, score),), score)


KEY = part("locks", "The brass key hangs behind the clock.", 0.9)
BOAT = part("boats", "The boat leaves the harbour at nine.", 0.5)
TREE = part("trees", "The oak is two hundred years old.", 0.3)
PARTS = [KEY, BOAT, TREE]


def run(
    stage: Stage, method: Method, chunks: int = 3, summary: int = 0, show: list[str] | None = None
) -> tuple[str, list[str], int]:
    found = synthesize(
        RagConfiguration(method, chunks, summary),
        "Where is the key?",
        PARTS,
        stage.calls(),
        ManualClock(),
        max_tokens=20,
        show=None if show is None else show.append,
    )
    assert found.num_calls == len(stage.requests)
    assert found.usage.prompt_tokens == sum(r.prompt.num_tokens for r in stage.requests)
    assert found.usage.cached_tokens == 10 * len(stage.requests)
    return found.text, [one.passage.source for one in found.citations], found.num_calls


def behind(text: str) -> tuple[str, float]:
    """Answers from whichever text speaks of a key."""
    if "brass key" in text:
        return "It hangs behind the clock.", -0.1
    return "I do not know.", -0.01


def test_extracting_quotes_the_best_passage_and_asks_nobody() -> None:
    stage, shown = Stage(behind), list[str]()
    assert run(stage, Method.EXTRACT, 1, show=shown) == (KEY.text, ["locks"], 0)
    assert shown == [KEY.text]


def test_of_near_hits_the_one_with_the_questions_words_is_quoted() -> None:
    """The boat's passage scores higher, the key's holds all words of the question."""
    near = [part("boats", BOAT.text, 0.9), part("locks", KEY.text, 0.7)]
    assert best_passage("Where is the brass key?", near).source == "locks"
    assert best_passage("Anything?", near).source == "boats"


def test_stuffing_asks_once_about_all_and_streams() -> None:
    stage, shown = Stage(behind), list[str]()
    text, sources, calls = run(stage, Method.STUFF, show=shown)
    assert (text, sources, calls) == ("It hangs behind the clock.", ["locks"], 1)
    assert len(shown) == 5
    prompt = "".join(map(chr, stage.requests[0].prompt.token_ids))
    assert prompt.startswith(KEY.text + BOAT.text + TREE.text)
    assert stage.requests[0].group is None


def test_mapping_asks_about_each_and_keeps_the_surest_that_says_something() -> None:
    """ "I do not know" is said more surely than the answer, and is passed over."""
    stage, shown = Stage(behind), list[str]()
    text, sources, calls = run(stage, Method.MAP_RERANK, show=shown)
    assert (text, sources, calls) == ("It hangs behind the clock.", ["locks"], 3)
    assert shown == ["It hangs behind the clock."]
    firsts = ["".join(map(chr, r.prompt.segments[0].token_ids)) for r in stage.requests]
    assert firsts == [KEY.text, BOAT.text, TREE.text], "a stored document stands first everywhere"
    assert len({r.prompt.segments[1].token_ids for r in stage.requests}) == 1
    assert {(r.group, r.group_size) for r in stage.requests} == {("q/1.1", 3)}


def test_the_surest_of_several_answers_is_kept() -> None:
    def answers(text: str) -> tuple[str, float]:
        return ("At nine.", -0.2) if "boat" in text else ("Behind the clock.", -0.9)

    assert run(Stage(answers), Method.MAP_RERANK)[0] == "At nine."


def test_not_knowing_is_an_answer_and_an_empty_text_is_none() -> None:
    def answers(text: str) -> tuple[str, float]:
        return ("", -0.1) if "boat" in text else ("I do not know.", -0.9)

    assert run(Stage(answers), Method.MAP_RERANK)[0] == "I do not know."


def test_reducing_asks_about_summaries_that_say_something() -> None:
    def answers(text: str) -> tuple[str, float]:
        if "Write down" not in text:
            assert text.startswith("Locks: The key hangs there.")
            assert "Boats" not in text
            return "It hangs behind the clock.", -0.1
        return ("The key hangs there." if "brass" in text else "Nothing.", -0.1)

    stage = Stage(answers)
    text, sources, calls = run(stage, Method.MAP_REDUCE, 3, 40)
    assert (text, sources, calls) == ("It hangs behind the clock.", ["locks"], 4)
    assert [r.sampling.max_tokens for r in stage.requests] == [40, 40, 40, 20]
    assert [r.group for r in stage.requests] == ["q/1.1"] * 3 + [None]


def test_summaries_that_all_say_nothing_are_still_asked_about() -> None:
    stage = Stage(lambda _: ("nothing", -0.1))
    text, _, calls = run(stage, Method.MAP_REDUCE, 2, 30)
    assert (text, calls) == ("nothing", 3)


def test_groups_hold_what_fits_into_memory_together() -> None:
    """A call takes twice its prompt and its answer: 100 characters, about 250 tokens."""
    stage = Stage(behind)
    calls = stage.calls(group_tokens=900)
    synthesize(
        RagConfiguration(Method.MAP_RERANK, 3), "Where?", PARTS, calls, ManualClock(), max_tokens=9
    )
    groups = [(r.group, r.group_size) for r in stage.requests]
    assert groups == [("q/1.1", 2), ("q/1.1", 2), (None, 1)]


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(BadInput, match="kdn ingest"):
        synthesize(
            RagConfiguration(Method.STUFF, 1), "?", [], Stage(behind).calls(), ManualClock(),
            max_tokens=9,
        )  # fmt: skip


# --- ends ------------------------------------------------------------------------------------


def test_a_cancelled_query_stops_every_call_and_begins_no_other() -> None:
    stage = Stage(behind)
    calls = stage.calls()

    def answers(text: str) -> tuple[str, float]:
        if len(stage.requests) == 2:
            calls.cancel()
        return behind(text)

    stage.answers = answers
    with pytest.raises(Cancelled):
        synthesize(
            RagConfiguration(Method.MAP_REDUCE, 3, 30), "?", PARTS, calls, ManualClock(),
            max_tokens=9,
        )  # fmt: skip
    assert len(stage.requests) == 2
    assert all(stream.cancelled.is_set() for stream in stage.streams)


def test_one_call_that_is_refused_takes_the_others_along() -> None:
    stage = Stage(behind)

    def answers(text: str) -> tuple[str, float]:
        if "oak" in text:
            raise PromptTooLong("too long")
        return behind(text)

    stage.answers = answers
    with pytest.raises(PromptTooLong):
        run(stage, Method.MAP_RERANK)
    assert len(stage.streams) == 2
    assert all(stream.cancelled.is_set() for stream in stage.streams)


def test_an_interrupted_reader_cancels_the_answer() -> None:
    stage = Stage(behind)

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(
            RagConfiguration(Method.STUFF, 1), "?", PARTS, stage.calls(), ManualClock(),
            max_tokens=9, show=interrupt,
        )  # fmt: skip
    assert stage.streams[0].cancelled.is_set()
