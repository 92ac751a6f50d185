"""What a router reads of a server's answers: where a stream's first token is, and what was cached."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["begins_answer", "cached_tokens_of", "events_of"]


def events_of(came: bytes) -> list[bytes]:
    """The data of all whole server-sent events in what came of a stream."""
    whole = came.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
    return [
        line.removeprefix(b"data:").strip()
        for one in whole
        for line in one.split(b"\n")
        if line.startswith(b"data:")
    ]


def begins_answer(data: bytes) -> bool | None:
    """Does an event carry a part of an answer? None: it says that the server failed.

    A role, an empty text and a comment are no part: a client that saw none of an answer may be given
    that of another server.
    """
    told = _object(data)
    if told is None:
        return True  # `[DONE]`, or nothing that a router knows
    if "error" in told:
        error = told["error"]
        failed = isinstance(error, dict) and error.get("type") == "server_error"
        return None if failed else True
    return any(_has_part(one) for one in told.get("choices") or ())


def cached_tokens_of(data: bytes) -> int | None:
    """How many tokens of the prompt a server says it had stored; None when it says nothing."""
    told = _object(data)
    usage = told.get("usage") if told is not None else None
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if isinstance(cached, int) else None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _has_part(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return True
    if choice.get("text") or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
