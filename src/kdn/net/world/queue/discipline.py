"""What a queue is: three functions on a hop's rows, and a few facts about it.

A packet is a row number; a queue that drops a packet frees its row.  Every function takes the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kdn.net.world.compiled import compiled
from kdn.net.world.records import State

__all__ = ["Discipline", "never"]


@compiled
def never(state: State, hop: int, now: int) -> None:
    """The update of a queue that has no timer."""


class Discipline(NamedTuple):
    """A queueing discipline. Its functions are compiled."""

    name: str
    enqueue: Callable[..., bool]
    """(state, hop, packet, now): take the packet in; False when there is no room for it."""
    dequeue: Callable[..., int]
    """(state, hop, now): the next packet, marked where it must be, or NIL."""
    update: Callable[..., None] = never
    """(state, hop, now): what happens every `Queue.update_ms`, where `has_timer`."""
    has_timer: bool = False
    uses_lists: bool = True
    """Whether packets stand in the hop's two lists and nowhere else."""
