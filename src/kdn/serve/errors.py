"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`, always."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from kdn.errors import (
    BadInput,
    Cancelled,
    EngineFailed,
    KdnError,
    MissingExtra,
    NoSpace,
    PromptTooLong,
    UnknownModel,
)

__all__ = [
    "Disconnected",
    "Fault",
    "Refused",
    "fault_of",
    "fault_of_shape",
    "response",
    "speak_openai",
]


class Fault(msgspec.Struct, frozen=True):
    """What went wrong, in OpenAI's words, with the HTTP status that goes with it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def body(self) -> bytes:
        """The JSON text of `{"error": {...}}`."""
        return msgspec.json.encode({"error": _Wire(self.message, self.type, self.param, self.code)})


class _Wire(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class Refused(BadInput):
    """A request that the server turns away, with the status and the parameter at fault."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = Fault(status, message, _type_of(status), param, code, retry_after_s)

    @classmethod
    def of(cls, fault: Fault) -> Refused:
        """With that fault as it is."""
        refused = cls(fault.message)
        refused.fault = fault
        return refused


class Disconnected(Exception):
    """The client left before its answer was ready: what is sent now is not read."""


_CLIENT_LEFT = 499  # as nginx writes it in its log


def _type_of(status: int) -> str:
    named = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    return named.get(status, "invalid_request_error" if status < 500 else "server_error")


# Most specific first: the first class that fits wins.
_STATUS: tuple[tuple[type[KdnError], int, str | None], ...] = (
    (PromptTooLong, 400, "context_length_exceeded"),
    (UnknownModel, 404, "model_not_found"),
    (BadInput, 400, None),
    (MissingExtra, 501, "not_installed"),
    (Cancelled, 503, "cancelled"),
    (EngineFailed, 503, "engine_failed"),
    (NoSpace, 507, "no_space"),
    (KdnError, 500, None),
)


def fault_of(error: Exception) -> Fault:
    """The fault for any exception. One that kdn did not raise on purpose is not quoted."""
    if isinstance(error, Refused):
        return error.fault
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return Fault(status, str(error), _type_of(status), None, code)
    return Fault(500, "internal error; the server's log has the details", "server_error")


def _http_fault(error: HTTPException) -> Fault:
    """The fault for an error of the router: no such path, wrong method, unreadable body."""
    return Fault(error.status_code, str(error.detail), _type_of(error.status_code))


def fault_of_shape(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """The fault for a body of the wrong shape, by what pydantic says of it: names the first parameter and
    what is wrong. A location begins with `body`."""
    first = min(errors, key=_vagueness)
    where = _path(first.get("loc", ()))
    if first.get("type") == "json_invalid":
        why = first.get("ctx", {})
        detail = why.get("error", "") if isinstance(why, Mapping) else ""
        return Fault(400, f"the body is not valid JSON: {detail}", _type_of(400))
    said = _PLAIN.get(str(first.get("type")), f"{first.get('msg')}")
    message = f"{where}: {said}" if where else said
    return Fault(400, message, _type_of(400), where or None, "invalid_value")


def _vagueness(error: Mapping[str, object]) -> tuple[bool, int]:
    """Of a text or a list of texts both forms are tried: the error of the form that was meant says
    more than that the other one was not."""
    location = error.get("loc", ())
    depth = len(location) if isinstance(location, Sequence) else 0
    return str(error.get("type")).endswith("_type"), -depth


_PLAIN = {
    "extra_forbidden": "unknown here; leave it out",
    "none_required": "not supported by kdn; leave it out",
}
"""What Pydantic says of these in words of its own."""


def _path(location: object) -> str:
    """`("body", "messages", 0, "content", "str")` as `messages[0].content`."""
    parts = list(location)[1:] if isinstance(location, Sequence) else []
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_BRANCHES and not _INNER.search(str(part)):
            path += f".{part}" if path else str(part)
    return path


_INNER = re.compile(r"[\[-]")
"""Branches that Pydantic names itself, as `list[str]` and `constrained-float`."""
_UNION_BRANCHES = frozenset(
    {"str", "int", "float", "bool", "ContentPart", "DocumentBody", "RankedBody"}
)


def response(fault: Fault) -> Response:
    """The HTTP response that carries `fault`."""
    headers = {}
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    if fault.retry_after_s is not None:
        headers["retry-after"] = str(fault.retry_after_s)
    if fault.status in (413, 503):
        headers["connection"] = "close"
    return Response(fault.body(), fault.status, headers, media_type="application/json")


def speak_openai(app: FastAPI) -> None:
    """From now on every error of `app` leaves in OpenAI's shape."""

    async def on_kdn(_request: Request, error: Exception) -> Response:
        return response(fault_of(error))

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        cause = error.__cause__
        return response(fault_of(cause) if isinstance(cause, KdnError) else _http_fault(error))

    async def on_shape(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response(fault_of_shape(error.errors()))

    async def on_disconnect(_request: Request, _error: Exception) -> Response:
        return Response(status_code=_CLIENT_LEFT)

    app.add_exception_handler(Disconnected, on_disconnect)
    app.add_exception_handler(KdnError, on_kdn)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(Exception, on_kdn)
