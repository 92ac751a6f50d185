"""What do the parts save when they are stacked: real documents, kept, after a restart, in a chat?

A prompt holds two documents of the shipped corpus and a question.  Each way to answer it is timed
beside a full prefill of the same prompt, and its greedy answer is compared token by token: reuse
that is called exact may not change one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from kdn import api
from kdn.bench.common.lines import intervals_of, lines_of
from kdn.bench.common.measure import Ratio, Samples, interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.contestants import Listener
from kdn.bench.engine.lineup import opened
from kdn.core import Retention, Sampling, TokenIds, Usage
from kdn.corpus import corpus_files
from kdn.engine import kv_shape
from kdn.errors import EngineFailed
from kdn.model import Document, Message
from kdn.plot import Figure
from kdn.rank import MODEL_ALONE

__all__ = ["run"]

FULL, MEMORY, DISK = "full prefill", "kept in memory", "from disk after a restart"
RANKED_FULL, RANKED = "ranked, full prefill", "first document ranked before"
CHAT_FULL, CHAT = "next turn, full prefill", "next turn of a kept chat"
_BASELINES = {MEMORY: FULL, DISK: FULL, CHAT: CHAT_FULL, RANKED: RANKED_FULL}
_DOCUMENT_CHARACTERS = 4000
_RANKED_FROM = 20
"""Documents of a ranking are pieces that no other way has had computed."""
_SAMPLING = Sampling(max_tokens=16, ignore_eos=True)
_SHORT = Sampling(max_tokens=16)
_FIRST = "What is this text about?"
_QUESTIONS = (
    "Which rule is given first?",
    "Name one example from the text.",
    "Who should follow this?",
    "What is said about names?",
    "What does the text advise against?",
)

Opener = Callable[[], AbstractContextManager[api.Kdn]]


def run(options: BenchOptions) -> Result:
    """Measure every way in interleaved rounds, each over documents of its own."""
    torch.set_num_threads(options.threads)
    rounds = options.pairs or (2 if options.quick else 5)
    with scratch_folder() as folder:
        opener = partial(opened, options, folder)
        with opener() as service:
            stack = _Stack(options, service, opener)
            options.say("warming up")
            interleave(stack.sides(), 1)
            stack.seen.clear()
            options.say(f"{rounds} rounds of every way")
            samples = interleave(stack.sides(), rounds, first=1)
            dtype = kv_shape(service.model).dtype
    changed = stack.changed()
    rows = [_row(way, seen, samples, changed) for way, seen in stack.seen.items()]
    return Result(
        bench="stack",
        model=options.model,
        config=options.describe() | {"rounds": rounds},
        rows=rows,
        summary={
            "memory_speedup": _speedup(samples, MEMORY),
            "disk_speedup": _speedup(samples, DISK),
            "chat_speedup": _speedup(samples, CHAT),
            "ranked_speedup": _speedup(samples, RANKED),
            "reused_share": _reused_share(stack.seen[MEMORY].usages),
            "changed_share": sum(changed.values()) / len(changed),
        },
        figures=(figure_of(rows),),
        dtype=dtype,
    )


@dataclass
class _Seen:
    """What became of one way to answer, a round after the other."""

    usages: list[Usage] = field(default_factory=list)
    answers: list[TokenIds] = field(default_factory=list)


@dataclass
class _Stack:
    """A service that keeps what it computes, and the means to start another over its folder."""

    options: BenchOptions
    keeper: api.Kdn
    restart: Opener
    seen: dict[str, _Seen] = field(default_factory=dict)
    _chats: dict[int, list[Message]] = field(default_factory=dict)
    _ranked: dict[int, list[Document]] = field(default_factory=dict)

    def sides(self) -> dict[str, Callable[[int], float]]:
        """Every way to answer, as a contestant that is told the round."""
        ways = (FULL, MEMORY, DISK, CHAT_FULL, CHAT, RANKED_FULL, RANKED)
        return {way: partial(self._round, way) for way in ways}

    def changed(self) -> dict[str, float]:
        """By way, the share of answer tokens that are not those of a full prefill."""
        found = {}
        for way, baseline in _BASELINES.items():
            pairs = zip(self.seen[way].answers, self.seen[baseline].answers, strict=True)
            tokens = [a != b for ours, full in pairs for a, b in zip(ours, full, strict=True)]
            found[way] = sum(tokens) / len(tokens)
        return found

    def _round(self, way: str, number: int) -> float:
        if way in (RANKED, RANKED_FULL):
            return self._after_ranking(way, number)
        turns, documents = self._prepare(number), _documents(number)
        question = Message("user", _QUESTIONS[number % len(_QUESTIONS)])
        if way in (CHAT, CHAT_FULL):
            return self._answer(way, self.keeper, [*turns, question], documents)
        if way != DISK:
            return self._answer(way, self.keeper, [question], documents)
        with self.restart() as service:
            return self._answer(way, service, [question], documents)

    def _after_ranking(self, way: str, number: int) -> float:
        """An answer over documents in the order of a ranking, which was the first to see them."""
        question = _QUESTIONS[number % len(_QUESTIONS)]
        documents = _documents(number, _RANKED_FROM)
        if number not in self._ranked:
            found = self.keeper.rerank(
                question, [one.text for one in documents], adapter=MODEL_ALONE
            )
            self._ranked[number] = [documents[one.index] for one in found]
            self.keeper.store.flush()
        messages = [Message("user", question)]
        return self._answer(way, self.keeper, messages, self._ranked[number])

    def _prepare(self, number: int) -> list[Message]:
        """The first question about the round's documents, answered and kept: the chat so far."""
        if number not in self._chats:
            first = Message("user", _FIRST)
            answer = self.keeper.generate([first], _documents(number), sampling=_SHORT)
            self.keeper.store.flush()
            self._chats[number] = [first, Message("assistant", answer.text)]
        return self._chats[number]

    def _answer(
        self, way: str, service: api.Kdn, messages: list[Message], documents: list[Document]
    ) -> float:
        """Seconds to the first token of an answer given one way."""
        full = way not in _BASELINES
        request = service.prompts.request(messages, documents, sampling=_SAMPLING)
        request = replace(request, reuse=not full, retention=Retention.NOTHING)
        listener = Listener(self.options.clock)
        started = self.options.clock.now()
        service.submit(request).on_event(listener)
        usage = listener.wait()
        if not full and usage.exact == 0:
            raise EngineFailed(f"{way}: nothing was reused of {usage.prompt_tokens} tokens")
        seen = self.seen.setdefault(way, _Seen())
        seen.usages.append(usage)
        seen.answers.append(tuple(listener.token_ids))
        return listener.times_s[0] - started


def _documents(number: int, skip: int = 0) -> list[Document]:
    """Two pieces of the corpus that no other round uses; after `skip` others."""
    texts = [path.read_text("utf-8") for path in corpus_files()]
    size = _DOCUMENT_CHARACTERS
    pieces = [text[at : at + size] for text in texts for at in range(0, len(text) - size, size)]
    first = (2 * number + skip) % (len(pieces) - 1)
    return [Document(None, piece) for piece in pieces[first : first + 2]]


def _row(way: str, seen: _Seen, samples: Samples, changed: dict[str, float]) -> Row:
    row: Row = {
        "way": way,
        "prompt tokens": round(statistics.mean(usage.prompt_tokens for usage in seen.usages)),
        "reused": round(statistics.mean(usage.exact for usage in seen.usages)),
        "first token, ms": (median(samples, way) or 0.0) * 1000,
        "from": ", ".join(sorted({tier for usage in seen.usages for tier in usage.tiers})),
    }
    found = _ratio(samples, way)
    if found is not None:
        row |= {"speedup": found.median, "spread": f"{found.low:.2f}-{found.high:.2f}"}
        row["changed tokens"] = changed[way]
    return row


def _ratio(samples: Samples, way: str) -> Ratio | None:
    return ratio(samples, way, _BASELINES[way]) if way in _BASELINES else None


def _speedup(samples: Samples, way: str) -> float | None:
    found = _ratio(samples, way)
    return found.median if found is not None else None


def _reused_share(usages: list[Usage]) -> float:
    return sum(u.exact for u in usages) / sum(u.prompt_tokens for u in usages)


def figure_of(rows: Sequence[Row]) -> Figure:
    """The paired ratios of every way to the full prefill of its own prompts."""
    shown = [row | {"at": 0} for row in rows if row.get("speedup")]
    return Figure(
        "First token over stored KV",
        "",
        "times sooner than a full prefill",
        lines_of(shown, "way", "at", "speedup"),
        intervals_of(shown, "way", "speedup"),
        level=1.0,
    )
