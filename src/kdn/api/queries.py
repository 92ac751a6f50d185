"""What a question about documents may ask for, and the handle that withdraws it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from kdn.api.prompts import Reuse, blending
from kdn.errors import BadInput, Cancelled
from kdn.rag.metis import Method, Preference

__all__ = ["Query", "QueryOptions"]


@dataclass(frozen=True)
class QueryOptions:
    """What a request says about its answer. Raises BadInput for what makes no sense."""

    max_tokens: int = 256
    method: Method | None = None
    """None: chosen for the question."""
    max_chunks: int | None = None
    """Read at most so many chunks; with a `method`, so many if they are found."""
    summary_tokens: int | None = None
    """Of `map_reduce` that was asked for."""
    quality: Preference = Preference.BALANCED
    deadline_ms: float | None = None
    """The answer is wanted within this time; the best passage is quoted where no model can keep it."""
    salt: str = ""
    reuse: Reuse = "exact"
    ratio: float | None = None
    """Of `reuse="blend"`: the share of blended tokens that is recomputed."""
    always: bool = False
    """Answer also where the documents do not seem to say it."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}; an answer has one token at least")
        if self.max_chunks is not None and self.max_chunks < 1:
            raise BadInput(f"max_chunks is {self.max_chunks}; an answer reads one chunk at least")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < float("inf"):
            raise BadInput(f"deadline_ms is {self.deadline_ms}; it is a time above 0")
        if self.summary_tokens is not None and self.method is not Method.MAP_REDUCE:
            raise BadInput("summary_tokens goes with method map_reduce")
        blending(self.reuse, self.ratio)


class Query:
    """A question that is being answered, so that another thread can withdraw it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel: Callable[[], None] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Stop its calls soon; `answer` then raises Cancelled."""
        with self._lock:
            self.is_cancelled = True
            cancel = self._cancel
        if cancel is not None:
            cancel()

    def check(self) -> None:
        """Raises Cancelled once it is withdrawn."""
        if self.is_cancelled:
            raise Cancelled("the query was cancelled before its first call")

    def runs(self, cancel: Callable[[], None]) -> None:
        """What stops it from now on; called at once where it was cancelled before."""
        with self._lock:
            self._cancel = cancel
            late = self.is_cancelled
        if late:
            cancel()
