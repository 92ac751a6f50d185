"""Three network namespaces in a row: sender, router, receiver, joined by veth pairs.

Needs root and iproute2.  `namespaces_work` says whether both are there; loopback serves where
they are not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from kdn.errors import KdnError
from kdn.net.real.wire import open_socket

__all__ = ["Namespaces", "namespaces_work"]

_NEW_NET = 0x40000000
_PLACES = Path("/var/run/netns")


def namespaces_work() -> bool:
    """Can this process make network namespaces?"""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"kdn-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


class Namespaces:
    """Exists inside a `with`; everything it made is gone after it."""

    sender_host = "10.213.1.1"
    router_front = "10.213.1.2"
    router_back = "10.213.2.1"
    receiver_host = "10.213.2.2"

    def __init__(self) -> None:
        tag = f"kdn{os.getpid() % 100_000}"
        self._names = [f"{tag}-{part}" for part in ("s", "r", "d")]

    def __enter__(self) -> Self:
        sender, router, receiver = self._names
        try:
            for name in self._names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            self._join(sender, router, self.sender_host, self.router_front)
            self._join(router, receiver, self.router_back, self.receiver_host)
        except KdnError:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def inside(self, role: str) -> list[str]:
        """The words that run a command inside the namespace of "sender", "router", "receiver"."""
        return ["ip", "netns", "exec", self._name(role)]

    def open_socket(self, role: str, host: str) -> socket.socket:
        """A UDP socket of this process in the namespace of `role`; the process itself stays where it is.

        A namespace belongs to a thread, and a socket stays in the one where it was opened: a thread enters,
        opens it and ends.
        """

        def opened() -> socket.socket:
            with (_PLACES / self._name(role)).open("rb") as space:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(space.fileno(), _NEW_NET) != 0:
                    reason = os.strerror(ctypes.get_errno())
                    raise KdnError(f"this process may not enter a network namespace: {reason}")
            return open_socket(host)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(opened).result()

    def _name(self, role: str) -> str:
        return self._names[("sender", "router", "receiver").index(role)]

    def _join(self, left: str, right: str, left_host: str, right_host: str) -> None:
        a, b = f"v{left[-7:]}", f"w{right[-7:]}"
        _ip("link", "add", a, "netns", left, "type", "veth", "peer", "name", b, "netns", right)
        for name, device, host in ((left, a, left_host), (right, b, right_host)):
            _ip("-n", name, "addr", "add", f"{host}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")

    def _remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KdnError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()}; run over loopback instead"
        )
