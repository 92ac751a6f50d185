"""The open model as a profiler, with what its calls were noted down for the simulator."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from kdn.api.parts import Parts
from kdn.api.profilers import OpenModelProfiles
from kdn.core import Finish, StreamEvent, Usage
from kdn.rag.metis import SpokenToken
from kdn.rag.metis.demand import CallSize

__all__ = ["NotedProfiles"]


class NotedProfiles(OpenModelProfiles):
    """As its parent; remembers the usage of each profile."""

    def __init__(self, parts: Parts, timeout_s: float) -> None:
        super().__init__(parts, timeout_s)
        self._usages: list[Usage] = []

    def mean_call(self) -> CallSize | None:
        """The call that a profile is, on the average; None before any."""
        if not self._usages:
            return None
        new, cached, answer = (
            round(statistics.fmean(numbers))
            for numbers in zip(
                *((u.recomputed, u.cached_tokens, u.completion_tokens) for u in self._usages),
                strict=True,
            )
        )
        return CallSize(new, cached, max(answer, 1))

    def _spoken(self, stream: Iterable[StreamEvent]) -> list[SpokenToken]:
        events = list(stream)
        self._usages += [event.usage for event in events if isinstance(event, Finish)]
        return super()._spoken(events)
