"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`, always."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

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
from kdn.machine.text import counted

__all__ = [
    "AMBIGUOUS_LENGTH",
    "Disconnected",
    "Fault",
    "Refused",
    "fault_of",
    "fault_of_shape",
    "response",
    "speak_openai",
]


AMBIGUOUS_LENGTH = "ambiguous_length"
"""The code of a request after which a proxy may see another end of the body: its connection closes."""
_MOST_SIDE = 500
"""Characters of a long message that are told, of its beginning and of its end."""


@dataclass(frozen=True)
class Fault:
    """What went wrong, in OpenAI's words, with the HTTP status that goes with it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        """Both texts may quote what was sent: megabytes, ends of lines, half a surrogate pair."""
        object.__setattr__(self, "message", _one_line(self.message))
        if self.param is not None:
            object.__setattr__(self, "param", _one_line(self.param))

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


_MOST_PATH = 100
"""So many characters of a path that is not there are told."""
_CLIENT_LEFT = 499  # as nginx writes it in its log


def _one_line(text: str) -> str:
    """The text with an escape for each character that Unicode does not print, and without its middle where
    it is long."""
    if len(text) <= 2 * _MOST_SIDE and text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in _ends(text))
    return _ends(escaped)


def _ends(text: str) -> str:
    """Its beginning and its end, where it is long."""
    return text if len(text) <= 2 * _MOST_SIDE else f"{text[:_MOST_SIDE]} ... {text[-_MOST_SIDE:]}"


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


def _http_fault(asked: str, method: str, error: HTTPException) -> Fault:
    """The fault for an error of the router: no such path, wrong method, unreadable body."""
    said, status = str(error.detail), error.status_code
    if said == HTTPStatus(status).phrase and status == HTTPStatus.NOT_FOUND:
        own = "; the store's paths open with serve.store_key" if "/store" in asked else ""
        said = f"there is no {asked[:_MOST_PATH]} here; /openapi.json lists the paths that there are{own}"
    elif said == HTTPStatus(status).phrase and status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        said = f"{asked[:_MOST_PATH]} takes no {method}; send {allowed}"
    return Fault(status, said, _type_of(status))


def fault_of_shape(errors: Sequence[Mapping[str, Any]]) -> Fault:
    """The fault for a body of the wrong shape, by what pydantic says of it: names the first parameter and
    what is wrong. A location begins with `body`."""
    first = min(errors, key=_vagueness)
    where = _path(first.get("loc", ()))
    if first.get("type") == "json_invalid":
        why, at = first.get("ctx", {}), str(list(first.get("loc", ("",)))[-1])
        detail = why.get("error", "") if isinstance(why, Mapping) else ""
        place = f" after {at} characters" if at.isdecimal() else ""
        return Fault(400, f"the body is not valid JSON{place}: {detail}", _type_of(400))
    here = [error for error in errors if _path(error.get("loc", ())) == where]
    message = f"{where or 'the body'}: {_said(first, here)}"
    return Fault(400, message, _type_of(400), where or None, "invalid_value")


def _said(error: Mapping[str, Any], here: Sequence[Mapping[str, Any]]) -> str:
    """What was found and what to give, where Pydantic speaks of Python. `here`: all errors of that place,
    one for each form that it may have."""
    kind, bounds, given = str(error.get("type")), error.get("ctx") or {}, error.get("input")
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "value_error":
        return str(bounds.get("error", error.get("msg")))
    if kind in _LENGTHS and isinstance(given, str | list | dict):
        size = counted(len(given), "character" if isinstance(given, str) else "item")
        least, most = bounds.get("min_length"), bounds.get("max_length")
        return f"has {size}; give " + (f"{most} at most" if least is None else f"{least} or more")
    if kind not in _WANTED:
        return f"{error.get('msg')}"
    is_bound = kind.startswith(("greater", "less"))  # then its type is right, and others' are not
    wanted = [
        _wanted(one)
        for one in here
        if one.get("type") in _WANTED and not (is_bound and str(one.get("type")).endswith("_type"))
    ]
    return f"found {_shown(given)}; give {' or '.join(dict.fromkeys(wanted))}"


def _wanted(error: Mapping[str, Any]) -> str:
    bounds = {
        name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        for name, bound in (error.get("ctx") or {}).items()
    }
    return _WANTED[str(error.get("type"))].format(**bounds)


def _shown(value: object) -> str:
    """A value as JSON has it, short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value) if value is None or isinstance(value, _JSON) else "something else"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_JSON = (bool, int, float, str)
_SHOWN = 40
_LENGTHS = frozenset({"too_short", "too_long", "string_too_long", "string_too_short"})
_WANTED = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a text that fits {pattern}",
}
"""What to give, by Pydantic's kind of error."""


def _vagueness(error: Mapping[str, object]) -> tuple[bool, int]:
    """Of a text or a list of texts both forms are tried: the error of the form that was meant says
    more than that the other one was not."""
    location = error.get("loc", ())
    depth = len(location) if isinstance(location, Sequence) else 0
    return str(error.get("type")).endswith("_type"), -depth


_PLAIN = {
    "extra_forbidden": "unknown here; leave it out",
    "none_required": "not supported by kdn; leave it out",
    "missing": "it is missing; give it",
}
"""What to say of these."""


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
    if fault.status in (413, 503) or fault.code == AMBIGUOUS_LENGTH:
        headers["connection"] = "close"
    return Response(fault.body(), fault.status, headers, media_type="application/json")


def speak_openai(app: FastAPI) -> None:
    """From now on every error of `app` leaves in OpenAI's shape."""

    async def on_kdn(_request: Request, error: Exception) -> Response:
        return response(fault_of(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ClientDisconnect):  # while FastAPI read the body
            return Response(status_code=_CLIENT_LEFT)
        if isinstance(error.__cause__, KdnError):
            return response(fault_of(error.__cause__))
        answer = response(_http_fault(request.url.path, request.method, error))
        answer.headers.update(error.headers or {})
        return answer

    async def on_shape(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response(fault_of_shape(error.errors()))

    async def on_disconnect(_request: Request, _error: Exception) -> Response:
        return Response(status_code=_CLIENT_LEFT)

    for left in (Disconnected, ClientDisconnect):  # before its answer, and before its body's end
        app.add_exception_handler(left, on_disconnect)
    app.add_exception_handler(KdnError, on_kdn)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(Exception, on_kdn)
