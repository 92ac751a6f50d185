"""What goes out and comes back over HTTP: never more bytes than were asked for, and never for longer.

A socket's time-out alone would let a server that drips go on for ever: in its head, between its heads (`100
Continue` may come any number of times), or in its body.
"""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from kdn.clock import Clock
from kdn.machine.memory import allocate

__all__ = ["get_answer", "pieces", "read_reply"]

_PIECE_BYTES = 1 << 16
_TOO_LATE = "its answer did not end in time"


def pieces(body: memoryview, deadline_s: float, clock: Clock) -> Iterator[memoryview]:
    """The body of a request, to be sent piece by piece. Raises HTTPException at `deadline_s`."""
    for start in range(0, body.nbytes, _PIECE_BYTES):
        if clock.now() > deadline_s:
            raise http.client.HTTPException("it did not take in time what was sent")
        yield body[start : start + _PIECE_BYTES]


def get_answer(
    connection: http.client.HTTPConnection, deadline_s: float, clock: Clock
) -> http.client.HTTPResponse:
    """The answer to what was asked over `connection`, its head read.

    Raises HTTPException where that, and later where its body, goes on after `deadline_s`; OSError.
    """
    timed = partial(_TimedResponse, deadline_s=deadline_s, clock=clock)
    cast("Any", connection).response_class = timed
    return connection.getresponse()


def read_reply(
    answer: http.client.HTTPResponse, max_bytes: int, deadline_s: float, clock: Clock
) -> memoryview:
    """The whole body; the connection can then be used again.

    Raises OSError, and HTTPException for a body of more than `max_bytes` or one that has not ended at
    `deadline_s`.
    """
    too_long = f"it answers with more than {max_bytes} bytes"
    if (answer.length or 0) > max_bytes:
        raise http.client.HTTPException(too_long)
    if isinstance(answer, _TimedResponse) and answer.length is not None:
        return answer.read_all()
    data = bytearray()
    while piece := answer.read1(_PIECE_BYTES):
        data += piece
        if len(data) > max_bytes:
            raise http.client.HTTPException(too_long)
        if clock.now() > deadline_s:
            raise http.client.HTTPException(_TOO_LATE)
    if answer.length:  # `read1` takes a connection that breaks for the end
        raise http.client.IncompleteRead(bytes(data), answer.length)
    answer.read()  # nothing is left; this tells the connection so
    return memoryview(data).toreadonly()


class _TimedResponse(http.client.HTTPResponse):
    """An answer of which nothing is read after a deadline."""

    def __init__(self, *args: Any, deadline_s: float, clock: Clock, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_TimedBytes(raw, deadline_s, clock))

    def read_all(self) -> memoryview:
        """A body whose length is known, in place: put together from pieces it is copied three times."""
        size_bytes = self.length or 0
        data = allocate(size_bytes, zeroed=False)
        num_bytes = self.readinto(data) if size_bytes else 0
        if num_bytes < size_bytes:  # a connection that breaks is taken for the end
            raise http.client.IncompleteRead(bytes(data[:num_bytes]), size_bytes - num_bytes)
        self.read()  # nothing is left; this tells the connection so
        return data.toreadonly()


class _TimedBytes(io.RawIOBase):
    """The bytes of a socket until a deadline."""

    def __init__(self, raw: io.RawIOBase, deadline_s: float, clock: Clock) -> None:
        self._raw, self._deadline_s, self._clock = raw, deadline_s, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._clock.now() > self._deadline_s:
            raise http.client.HTTPException(_TOO_LATE)
        return cast("io.BytesIO", self._raw).readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
