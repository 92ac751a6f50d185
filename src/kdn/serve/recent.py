"""The last requests of a server: what was asked, by whom, and how it ended."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from kdn.clock import Clock
from kdn.core import Finish, Request

__all__ = ["RecentRequests", "RequestRecord"]


@dataclass
class RequestRecord:
    """One request of a caller, while it runs and for a while after."""

    request: Request
    caller: str
    began_s: float
    """The clock's seconds."""
    began_wall_s: float
    """Seconds since 1970."""
    finish: Finish | None = None
    failure: str = ""
    """What it ended with in place of a Finish."""
    ended_s: float | None = None


class RecentRequests:
    """The last requests, for callers that ask what became of theirs. Safe from several threads.

    Holds at most `most` requests of `most_tokens` prompt tokens together, but always the last one.
    """

    def __init__(self, clock: Clock, most: int = 1000, most_tokens: int = 500_000) -> None:
        self._clock = clock
        self._most = most
        self._most_tokens = most_tokens
        self._num_tokens = 0
        self._lock = threading.Lock()
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def begin(self, request: Request, caller: str) -> RequestRecord:
        """The request has been submitted."""
        record = RequestRecord(request, caller, self._clock.now(), self._clock.wall())
        with self._lock:
            self._records[request.id] = record
            self._num_tokens += request.prompt.num_tokens
            while len(self._records) > 1 and (
                len(self._records) > self._most or self._num_tokens > self._most_tokens
            ):
                _, oldest = self._records.popitem(last=False)
                self._num_tokens -= oldest.request.prompt.num_tokens
        return record

    def end(self, record: RequestRecord, finish: Finish | Exception) -> None:
        """It has ended, one way or the other."""
        record.ended_s = self._clock.now()
        if isinstance(finish, Finish):
            record.finish = finish
        else:
            record.failure = str(finish)

    def get(self, request_id: str) -> RequestRecord | None:
        """By its own id, or by that of the HTTP request whose first answer it is."""
        with self._lock:
            return self._records.get(request_id) or self._records.get(f"{request_id}-0")

    def all(self) -> list[RequestRecord]:
        """Every record, oldest first."""
        with self._lock:
            return list(self._records.values())
