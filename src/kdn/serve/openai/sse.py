"""Server-sent events as OpenAI sends them."""

from __future__ import annotations

import msgspec

from kdn.serve.errors import fault_of

__all__ = ["DONE", "event", "failure"]

DONE = b"data: [DONE]\n\n"


def event(shape: msgspec.Struct) -> bytes:
    """One event. JSON has no raw line breaks, so one line always suffices."""
    return b"data: " + msgspec.json.encode(shape) + b"\n\n"


def failure(error: Exception) -> bytes:
    """The event that OpenAI's clients turn into an exception."""
    return b"data: " + fault_of(error).body() + b"\n\n"
