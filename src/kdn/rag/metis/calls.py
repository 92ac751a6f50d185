"""The calls of one query: submitted as a group, gathered together, cancelled together."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kdn.core import Finish, FinishReason, Request, Sampling, Stream, Token, TokenIds, Usage
from kdn.errors import Cancelled
from kdn.model import Document, Message

__all__ = ["CallAnswer", "MakeRequest", "QueryCalls", "RagCall", "Show", "total_usage"]

Show = Callable[[str], None]
"""Is given pieces of text as they come."""
_KV_PER_TOKEN = 2
"""A token of a prompt may take its KV twice: where it is read, and where it is noted to be stored."""


class MakeRequest(Protocol):
    """Makes the request of a prompt, with an id of its own and the caller's salt and techniques."""

    def __call__(
        self, messages: Sequence[Message], documents: Sequence[Document], sampling: Sampling
    ) -> Request: ...


@dataclass(frozen=True)
class RagCall:
    """One prompt of a query: documents first, so that their KV serves every query and method."""

    instruction: str
    asked: str
    documents: tuple[Document, ...]
    max_tokens: int

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("system", self.instruction), Message("user", self.asked))


@dataclass(frozen=True)
class CallAnswer:
    """What came of a call. `confidence` in 0..1 is the geometric mean of its tokens' probabilities."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: TokenIds
    mean_logprob: float


class QueryCalls:
    """Runs the calls of one query. `cancel` may be called from any thread."""

    def __init__(
        self,
        name: str,
        make: MakeRequest,
        submit: Callable[[Request], Stream],
        *,
        group_tokens: int = 0,
    ) -> None:
        """`name` is unlike that of any other query.

        Calls that take `group_tokens` together at most are admitted together or not at all, so that
        no straggler holds the last step up; 0 admits each by itself.
        """
        self._name = name
        self._make = make
        self._submit = submit
        self._group_tokens = group_tokens
        self._stages = itertools.count(1)
        self._lock = threading.Lock()
        self._running: list[Stream] = []
        self._cancelled = False
        self.num_calls = 0
        """Calls that were submitted so far."""

    def run(self, calls: Sequence[RagCall], show: Show | None = None) -> list[CallAnswer]:
        """The answers of calls that run side by side, in their order.

        `show` is given the pieces of all of them, which makes sense for one.  Raises Cancelled after
        `cancel`, and what the engine raises; the other calls are cancelled before that goes on.
        """
        requests = [
            self._make(call.messages, call.documents, _sampling(call.max_tokens)) for call in calls
        ]
        try:
            streams = [self._begin(request) for request in self._grouped(requests)]
            answers = [_gathered(stream, show) for stream in streams]
        except BaseException:
            self._cancel_running()
            raise
        self._raise_if_cancelled()
        with self._lock:
            self._running.clear()
        return answers

    def cancel(self) -> None:
        """Stop every call soon; none begins any more. Calling it twice is harmless."""
        with self._lock:
            self._cancelled = True
        self._cancel_running()

    def _begin(self, request: Request) -> Stream:
        self._raise_if_cancelled()
        stream = self._submit(request)
        with self._lock:
            self._running.append(stream)
            self.num_calls += 1
            late = self._cancelled
        if late:
            stream.cancel()
        return stream

    def _raise_if_cancelled(self) -> None:
        with self._lock:
            if self._cancelled:
                raise Cancelled(f"the query {self._name} was cancelled")

    def _cancel_running(self) -> None:
        with self._lock:
            running, self._running = self._running, []
        for stream in running:
            stream.cancel()

    def _grouped(self, requests: Sequence[Request]) -> list[Request]:
        """The requests, in groups that surely fit into memory together."""
        stage, found, group = next(self._stages), list[Request](), list[Request]()
        room, number = self._group_tokens, itertools.count(1)
        for request in requests:
            tokens = _most_tokens(request)
            if group and tokens > room:
                found += _as_group(group, f"{self._name}/{stage}.{next(number)}")
                group, room = [], self._group_tokens
            group.append(request)
            room -= tokens
        return found + _as_group(group, f"{self._name}/{stage}.{next(number)}")


def _sampling(max_tokens: int) -> Sampling:
    return Sampling(max_tokens=max_tokens, logprobs=0)


def _most_tokens(request: Request) -> int:
    return _KV_PER_TOKEN * request.prompt.num_tokens + request.sampling.max_tokens


def _as_group(requests: Sequence[Request], name: str) -> list[Request]:
    if len(requests) < 2:
        return list(requests)
    return [replace(one, group=name, group_size=len(requests)) for one in requests]


def _gathered(stream: Stream, show: Show | None) -> CallAnswer:
    tokens, pieces = list[Token](), list[str]()
    for event in stream:
        text = event.tail if isinstance(event, Finish) else event.text
        pieces.append(text)
        if show is not None and text:
            show(text)
        if isinstance(event, Finish):
            logprobs = [token.logprob or 0.0 for token in tokens]
            return CallAnswer(
                "".join(pieces),
                event.reason,
                event.usage,
                tuple(token.token_id for token in tokens),
                sum(logprobs) / len(logprobs) if logprobs else 0.0,
            )
        tokens.append(event)
    raise AssertionError("a stream ends with a Finish or an error")


def total_usage(answers: Sequence[CallAnswer], ttft_ms: float, total_ms: float) -> Usage:
    """What all calls used together; the longest wait in the queue, and the query's own times."""
    usages = [answer.usage for answer in answers]
    tiers: dict[str, int] = {}
    levels: dict[str, int] = {}
    for usage in usages:
        for totals, found in ((tiers, usage.tiers), (levels, usage.levels)):
            for name, count in found.items():
                totals[name] = totals.get(name, 0) + count
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        exact=sum(usage.exact for usage in usages),
        blended=sum(usage.blended for usage in usages),
        shared=sum(usage.shared for usage in usages),
        lossy=sum(usage.lossy for usage in usages),
        recomputed=sum(usage.recomputed for usage in usages),
        queue_ms=max((usage.queue_ms for usage in usages), default=0.0),
        ttft_ms=ttft_ms,
        total_ms=total_ms,
        tiers=tiers,
        levels=levels,
    )
