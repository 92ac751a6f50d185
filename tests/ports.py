"""Ports for programs that cannot be given a listening socket."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

__all__ = ["free_port"]


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to no client meanwhile.

    It gives them those from 32768 on.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as door, suppress(OSError):
            door.bind(("127.0.0.1", port))
            return port
