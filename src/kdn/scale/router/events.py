"""What a router reads of a server's answers: where a stream's first token is, and what was cached."""

from __future__ import annotations

import json
from typing import Any

from kdn.scale.router.fleet import ToldTokens

__all__ = ["begins_answer", "events_of", "told_tokens_of"]

_BEFORE_ANSWER = ("response.created", "response.in_progress", "response.queued")
"""Events of `/v1/responses` that tell of the request alone."""


_SERVER_FAULTS = ("server_error", "InternalServerError")
"""What OpenAI and kdn, and what vLLM, call a fault that is not the request's."""


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

    A role, an empty text, a comment and a word that the request came are no part: a client that saw none
    of an answer may be given that of another server. What a router does not know is one.
    """
    told = _object(data)
    if told is None:
        return True  # `[DONE]`
    if "error" in told:
        return None if _part(told, "error").get("type") in _SERVER_FAULTS else True
    kind, choices = told.get("type"), told.get("choices")
    if kind == "response.failed":
        is_request = _part(_part(told, "response"), "error").get("code") == "invalid_prompt"
        return True if is_request else None
    if isinstance(choices, list):
        return any(_has_part(one) for one in choices)
    return kind not in _BEFORE_ANSWER


def told_tokens_of(data: bytes) -> ToldTokens | None:
    """How many tokens a server says the prompt has and it had stored; None when it does not say both."""
    told = _object(data) or {}
    whole = _part(told, "response") or told  # the last event of `/v1/responses` holds the answer
    usage = _part(whole, "usage")
    details = _part(usage, "prompt_tokens_details") or _part(usage, "input_tokens_details")
    prompt, cached = (
        usage.get("prompt_tokens", usage.get("input_tokens")),
        details.get("cached_tokens"),
    )
    if isinstance(prompt, int) and isinstance(cached, int):
        return ToldTokens(prompt, cached)
    return None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _part(told: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name; an empty one where there is none."""
    found = told.get(name)
    return found if isinstance(found, dict) else {}


def _has_part(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return True
    if choice.get("text") or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
