"""The real laboratory: three processes, in namespaces where possible, and what they saw."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kdn.errors import KdnError
from kdn.net.l4s.node import NodeConfig
from kdn.net.real.namespaces import Namespaces, namespaces_work

__all__ = ["LabRun", "Place", "open_place", "run_real"]

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LabRun:
    """One run. `delays_ms` are the judged flow's round trips above the path's own delay."""

    policy: str
    delays_ms: NDArray[np.float64]
    goodput_mbps: float
    all_mbps: float
    """What all flows together got through."""
    sent: dict[str, Any]
    router: dict[str, Any]
    reflector: dict[str, Any]


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


def run_real(
    place: Place,
    policy: str,
    seconds: float,
    kind: str = "video",
    mbps: float = 50.0,
    weight: str = "1/16",
    seed: int = 1,
) -> LabRun:
    """One run of flows of `kind` through the router. Raises KdnError when a process fails."""
    delay_ms = 10.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        out = str(Path(folder) / "log.npy")
        receiver = _Node(place, "receiver", NodeConfig("reflector", place.host("receiver")))
        stack.callback(receiver.end)
        router = _Node(
            place,
            "router",
            NodeConfig(
                "router",
                place.host("router"),
                back_host=place.host("back"),
                peer_host=place.host("receiver"),
                peer_port=receiver.port,
                mbps=mbps,
                weight=weight,
                delay_ms=delay_ms,
            ),
        )
        stack.callback(router.end)
        sender = _Node(
            place,
            "sender",
            NodeConfig(
                "sender",
                place.host("sender"),
                peer_host=place.host("router"),
                peer_port=router.port,
                kind=kind,
                policy=policy,
                mbps=mbps,
                seconds=seconds,
                out=out,
                seed=seed,
            ),
        )
        stack.callback(sender.end)
        sent = sender.result()
        log = np.load(out, allow_pickle=False)
        passed, heard = router.finish(), receiver.finish()
    own = log[log["flow"] == 0]
    delays = (own["t_ack"] - own["t_send"])[own["t_send"] > 1e9] / 1e6 - delay_ms
    mbit = float(own["size"].sum()) * 8e-6
    everything = float(log["size"].sum()) * 8e-6 / seconds
    return LabRun(policy, delays, mbit / seconds, everything, sent, passed, heard)


class _Node:
    """A child process that says two lines: ready, and done."""

    def __init__(self, place: Place, where: str, config: NodeConfig) -> None:
        command = [*place.command(where), sys.executable, "-m", "kdn.net.l4s.node"]
        self._role = config.role
        self._process = subprocess.Popen(
            [*command, msgspec.json.encode(config).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line()["port"])

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
