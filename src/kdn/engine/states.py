"""The states of a request, and the one table of its moves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["MOVES", "RequestState"]


class RequestState(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    """In the request queue, without memory."""
    ADMITTED = "admitted"
    """Planned and with memory, in the prefill queue."""
    PREFILLING = "prefilling"
    """Part of it is or was in a pass, and it has no token yet."""
    DECODING = "decoding"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


_ENDS = frozenset({RequestState.CANCELLED, RequestState.FAILED})

MOVES: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: _ENDS | {RequestState.ADMITTED},
    # A pass that breaks off, or that cannot begin, sends its requests back, to plan again.
    RequestState.ADMITTED: _ENDS
    | {RequestState.PREFILLING, RequestState.WAITING, RequestState.ADMITTED},
    RequestState.PREFILLING: _ENDS
    | {
        RequestState.WAITING,
        RequestState.ADMITTED,
        RequestState.DECODING,
        RequestState.FINISHED,
    },
    RequestState.DECODING: _ENDS | {RequestState.FINISHED},
    RequestState.FINISHED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.FAILED: frozenset(),
}
"""Every move that a request may make, by the state it is in."""
