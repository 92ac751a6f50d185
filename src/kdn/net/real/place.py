"""Where the processes of a real network run, loopback or namespaces, and such a process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from kdn.errors import KdnError
from kdn.net.real.namespaces import Namespaces, namespaces_work
from kdn.net.real.wire import open_socket

__all__ = ["Node", "Place", "open_place", "tell_parent", "until_parent_ends"]

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where the three processes run."""

    name: str
    spaces: Namespaces | None

    def host(self, role: str) -> str:
        """The address that `role` binds ("back" is the router's side to the receiver)."""
        if self.spaces is None:
            return _LOOPBACK
        hosts = {
            "sender": self.spaces.sender_host,
            "router": self.spaces.router_front,
            "back": self.spaces.router_back,
            "receiver": self.spaces.receiver_host,
        }
        return hosts[role]

    def open_socket(self, role: str) -> socket.socket:
        """A UDP socket of this process, bound where `role` lives."""
        if self.spaces is None:
            return open_socket(_LOOPBACK)
        return self.spaces.open_socket(role, self.host(role))

    def command(self, role: str) -> list[str]:
        """The words before `python` for a process of that role."""
        return [] if self.spaces is None else self.spaces.inside(role)


@contextmanager
def open_place(loopback: bool = False) -> Iterator[Place]:
    """Namespaces where this process may make them, otherwise (or when asked) loopback."""
    if loopback or not namespaces_work():
        yield Place("loopback", None)
        return
    with Namespaces() as spaces:
        yield Place("namespaces", spaces)


def tell_parent(**facts: Any) -> None:
    """Say a line of JSON, as a child process of `Node`."""
    sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    sys.stdout.flush()


def until_parent_ends(step: Callable[[], object]) -> float:
    """Call `step` until standard input ends; the processor seconds of this process meanwhile."""
    over, before = threading.Event(), time.process_time()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    while not over.is_set():
        step()
    return time.process_time() - before


class Node:
    """A child process, `python -m module CONFIG`, that says two lines of JSON: ready, and done.

    The first line has its `port`. The process ends when its standard input does. Methods raise KdnError
    when it stops early.
    """

    def __init__(self, place: Place, module: str, where: str, config: msgspec.Struct) -> None:
        command = [*place.command(where), sys.executable, "-m", module]
        self._role = where
        self._process = subprocess.Popen(
            [*command, msgspec.json.encode(config).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.port = int(self._line()["port"])
        except BaseException:  # a stop, too: nobody else knows the process yet
            self.end()
            raise

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            raise KdnError(f"the {self._role} process stopped: {errors.strip()[-500:]}")
        return msgspec.json.decode(line, type=dict[str, Any])

    def result(self) -> dict[str, Any]:
        """The second line, waited for."""
        return self._line()

    def finish(self) -> dict[str, Any]:
        """Ask it to stop; its last words."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._line()

    def end(self) -> None:
        """See that it is gone, whatever happened."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        self._process.wait()
