"""The receiver: one piece of feedback per packet, saying which ECN field it arrived with."""

from __future__ import annotations

import select
import socket

from kdn.errors import BadInput
from kdn.net.real import wire

__all__ = ["Reflector"]


class Reflector:
    """Answers every data packet immediately, to where it came from."""

    def __init__(self, udp: socket.socket) -> None:
        self._udp = udp
        self.received = 0
        self.bleached = 0
        """Packets whose ECN field was not the one the router says it set."""

    def step(self, wait_s: float = 0.02) -> None:
        """Answer what has come, waiting at most `wait_s` for it."""
        ready, _, _ = select.select([self._udp], [], [], wait_s)
        if not ready:
            return
        while (found := wire.receive(self._udp)) is not None:
            data, ecn, source = found
            try:
                said = wire.read(data)
            except BadInput:
                continue
            self.received += 1
            self.bleached += int(said.ecn != ecn)
            answer = wire.Datagram(True, said.flow, said.seq, said.sent_ecn, ecn)
            wire.send(self._udp, wire.write(answer), source, 0)
