"""Our datagrams, and the ECN field of the IP header beside them.

Data: kind 0, flow, sequence number, ECN as sent, ECN as the router left it; then padding.
Feedback: kind 1, flow, sequence number, ECN as it arrived, one per data packet.  The copy in our
own header exists because a network may bleach the real field; `bleached` can tell.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from kdn.errors import BadInput

__all__ = ["HEADER_BYTES", "Datagram", "open_socket", "read", "receive", "remark", "send", "write"]

_HEADER = struct.Struct("!BHQBB")
HEADER_BYTES = _HEADER.size
_DATA, _FEEDBACK = 0, 1
_SENT_AT, _MARK_AT = HEADER_BYTES - 2, HEADER_BYTES - 1
_CE = 3


@dataclass(frozen=True)
class Datagram:
    """What one of our packets says."""

    feedback: bool
    flow: int
    seq: int
    sent_ecn: int
    ecn: int


def write(datagram: Datagram, size: int = HEADER_BYTES) -> bytes:
    """The packet's bytes, padded to `size`."""
    kind = _FEEDBACK if datagram.feedback else _DATA
    head = _HEADER.pack(kind, datagram.flow, datagram.seq, datagram.sent_ecn, datagram.ecn)
    return head.ljust(size, b"\0")


def read(data: bytes) -> Datagram:
    """What the bytes say. Raises BadInput for anything that is not one of our packets."""
    if len(data) < HEADER_BYTES or data[0] > _FEEDBACK or max(data[_SENT_AT], data[_MARK_AT]) > _CE:
        raise BadInput(f"a datagram of {len(data)} bytes is not one of ours; is the port shared?")
    kind, flow, seq, sent_ecn, ecn = _HEADER.unpack_from(data)
    return Datagram(kind == _FEEDBACK, flow, seq, sent_ecn, ecn)


def remark(data: bytes, ecn: int) -> bytes:
    """The same packet with the router's mark in our own header."""
    return data[:_MARK_AT] + bytes((ecn,)) + data[_MARK_AT + 1 :]


def open_socket(host: str) -> socket.socket:
    """A non-blocking UDP socket on a free port, with large buffers that reports the ECN field."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        udp.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    udp.bind((host, 0))
    udp.setblocking(False)
    return udp


def send(udp: socket.socket, data: bytes, to: tuple[str, int], ecn: int) -> bool:
    """Send with the ECN field set for this packet only; False when the socket's buffer is full."""
    tos = [(socket.IPPROTO_IP, socket.IP_TOS, ecn.to_bytes(4, "little"))]
    try:
        udp.sendmsg([data], tos, 0, to)
    except (BlockingIOError, ConnectionRefusedError):
        return False
    return True


def receive(udp: socket.socket) -> tuple[bytes, int, tuple[str, int]] | None:
    """The next datagram with its ECN field and source, or None when there is none now."""
    try:
        data, control, _, source = udp.recvmsg(2048, 64)
    except (BlockingIOError, ConnectionRefusedError):
        return None
    ecn = 0
    for level, kind, value in control:
        if level == socket.IPPROTO_IP and kind == socket.IP_TOS:
            ecn = value[0] & 3
    return data, ecn, (source[0], source[1])
