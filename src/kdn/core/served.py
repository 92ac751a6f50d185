"""What a store did for a trace, for code that puts a price on it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Served"]


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request of a trace in a store, replayed or real."""

    at_s: float
    """Seconds since the trace began."""
    num_tokens: int
    """Prompt tokens."""
    output_tokens: int
    hit_tokens: int
    """Prompt tokens whose KV the store had."""
    read_bytes: int
    written_bytes: int
    held_bytes: int
    """What the store holds after the request."""
    num_blocks: int
    hit_blocks: int
    written_blocks: int
    """Those that were not there and were let in."""
