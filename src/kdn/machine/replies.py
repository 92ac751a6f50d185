"""What came back over HTTP: never more bytes than were asked for, and never for longer."""

from __future__ import annotations

import http.client

from kdn.clock import Clock

__all__ = ["read_reply"]

_PIECE_BYTES = 1 << 16


def read_reply(
    answer: http.client.HTTPResponse, max_bytes: int, deadline_s: float, clock: Clock
) -> bytes:
    """The whole body; the connection can then be used again.

    It is read piece by piece: a socket's time-out alone would let one that drips go on for ever.  Raises
    HTTPException for a body of more than `max_bytes`, or one that has not ended at `deadline_s`; OSError.
    """
    too_long = f"it answers with more than {max_bytes} bytes"
    if (answer.length or 0) > max_bytes:
        raise http.client.HTTPException(too_long)
    data = bytearray()
    while piece := answer.read1(_PIECE_BYTES):
        data += piece
        if len(data) > max_bytes:
            raise http.client.HTTPException(too_long)
        if clock.now() > deadline_s:
            raise http.client.HTTPException("its answer did not end in time")
    if answer.length:  # `read1` takes a connection that breaks for the end
        raise http.client.IncompleteRead(bytes(data), answer.length)
    answer.read()  # nothing is left; this tells the connection so
    return bytes(data)
