"""JSON over HTTP to one server, from several threads, with patience for one that is busy."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from kdn.clock import Clock, SystemClock
from kdn.errors import BadConfig, Unreachable
from kdn.machine.replies import get_answer, read_reply

__all__ = ["JsonClient", "JsonReply"]

_TRY_AGAIN = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_LONGEST_WAIT_S = 20.0
_MOST_BYTES = 4 << 20
"""Of an answer: a list of models, the tokens of a word, one token with its alternatives."""


@dataclass(frozen=True)
class JsonReply:
    """A status and the object that came with it."""

    status: int
    body: Mapping[str, Any]

    @property
    def message(self) -> str:
        """What the server says went wrong, in one line."""
        error = self.body.get("error", self.body)
        told = error.get("message") if isinstance(error, dict) else error
        return " ".join(str(told or self.body).split())[:300]


class JsonClient:
    """One server. Safe from several threads; connections that are free are kept until `close`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 120.0,
        tries: int = 5,
        sleep: Callable[[float], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """An answer ends within `timeout_s`. Raises BadConfig for what is no address."""
        parts = _address(url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._parts = parts
        self._timeout_s = timeout_s
        self._tries = tries
        self._sleep = sleep or threading.Event().wait
        self._clock = clock or SystemClock()
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._free: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is not in use."""
        while self._free:
            self._free.pop().close()

    def get(self, path: str) -> JsonReply:
        """Raises Unreachable when the server does not answer, again and again."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> JsonReply:
        """Raises Unreachable when the server does not answer, or is too busy, again and again."""
        return self._call("POST", path, json.dumps(body).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> JsonReply:
        wait_s, why = 0.2, ""
        for turn in range(self._tries):
            if turn:
                self._sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            try:
                reply = self._once(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
                continue
            if reply.status not in _TRY_AGAIN:
                return reply
            why = reply.message
        raise Unreachable(
            f"the engine at {self.url} did not answer {path} in {self._tries} tries: {why};"
            " check the address, and that the server runs"
        )

    def _once(self, method: str, path: str, body: bytes | None) -> JsonReply:
        try:
            kept = self._free.pop()
        except IndexError:
            status, text = self._exchange(self._connect(), method, path, body)
        else:
            try:
                status, text = self._exchange(kept, method, path, body)
            except (ConnectionError, http.client.HTTPException):
                self.close()  # the server closes what rests for long: a new one tells whether it is there
                status, text = self._exchange(self._connect(), method, path, body)
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = {"message": text[:200].decode("utf-8", "replace")}
        return JsonReply(status, told if isinstance(told, dict) else {"data": told})

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        deadline_s = self._clock.now() + self._timeout_s
        try:
            connection.request(method, path, body, self._headers)
            answer = get_answer(connection, deadline_s, self._clock)
            text = bytes(read_reply(answer, _MOST_BYTES, deadline_s, self._clock))
        except BaseException:
            connection.close()
            raise
        self._free.append(connection)
        return answer.status, text

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)


def _address(url: str) -> SplitResult:
    """The parts of a server's address. Raises BadConfig for what is none."""
    with suppress(ValueError):  # a port that is no number, half a bracket
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise BadConfig(f"the server's address is {url!r}; write http://HOST:PORT")
