"""A query as a stream: what servers and frameworks that want text as it comes iterate over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

from kdn.api.answers import Answer
from kdn.api.queries import Query, QueryOptions
from kdn.core import Finish, StreamEvent, Token
from kdn.errors import EngineFailed

__all__ = ["AskLibrary", "QueryStream"]

_Pushed = StreamEvent | Exception | None


class AskLibrary(Protocol):
    """Answers a question from documents. Safe from several threads; raises KdnError."""

    def __call__(
        self, question: str, options: QueryOptions, show: Callable[[str], None], query: Query
    ) -> Answer: ...


class QueryStream:
    """One query as a stream: its pieces of text as tokens, then its end."""

    def __init__(self, ask: AskLibrary, question: str, options: QueryOptions) -> None:
        self._ask, self._question, self._options = ask, question, options
        self._query = Query()
        self._lock = threading.Lock()
        self._early: list[_Pushed] = []
        self._listener: Callable[[_Pushed], None] | None = None
        self.answer: Answer | None = None
        """What came of it, once the stream has ended."""

    def run(self) -> None:
        """Answer; every outcome is an event. For a thread of its own."""
        try:
            self.answer = self._ask(self._question, self._options, self._show, self._query)
        except Exception as error:  # noqa: BLE001 - it goes on on the event loop
            self._push(error)
        except BaseException as error:  # noqa: BLE001 - a panic of a library: the caller must hear of it
            self._push(EngineFailed(f"the query failed: {error!r}"))
        else:
            self._push(Finish(self.answer.finish_reason, self.answer.usage))
        self._push(None)

    def start(self) -> None:
        """Run on a thread of its own."""
        threading.Thread(target=self.run, name="kdn-query", daemon=True).start()

    def cancel(self) -> None:
        self._query.cancel()

    def on_event(self, listener: Callable[[_Pushed], None]) -> None:
        with self._lock:
            early, self._early = self._early, [one for one in self._early if one is None]
            for pushed in early:
                listener(pushed)
            self._listener = listener

    def __iter__(self) -> Iterator[StreamEvent]:
        arrived: SimpleQueue[_Pushed] = SimpleQueue()
        self.on_event(arrived.put)
        while (pushed := arrived.get()) is not None:
            if isinstance(pushed, Exception):
                raise pushed
            yield pushed

    @property
    def ended(self) -> Answer:
        """The answer; to be asked for only after the stream has ended."""
        assert self.answer is not None, "the stream has not ended"
        return self.answer

    def _show(self, text: str) -> None:
        self._push(Token(0, text))

    def _push(self, pushed: _Pushed) -> None:
        with self._lock:
            if self._listener is None or pushed is None:  # the end is there for later readers, too
                self._early.append(pushed)
            if self._listener is not None:
                self._listener(pushed)
