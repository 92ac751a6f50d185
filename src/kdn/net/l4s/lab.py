"""The real laboratory: three processes, in namespaces where possible, and what they saw."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.l4s.choosers import check_real
from kdn.net.l4s.node import NodeConfig
from kdn.net.real.place import Node, Place, open_place
from kdn.net.world.records import MS, SECOND

__all__ = ["LabRun", "Place", "delays_ms", "open_place", "run_real"]

_WARM_UP_S = 1.0
_MODULE = "kdn.net.l4s.node"


@dataclass(frozen=True)
class LabRun:
    """One run. `delays_ms` are the judged flow's round trips above the path's own delay."""

    delays_ms: NDArray[np.float64]
    goodput_mbps: float
    sent: dict[str, Any]
    router: dict[str, Any]
    reflector: dict[str, Any]


def run_real(
    place: Place,
    policy: str,
    seconds: float,
    kind: str = "video",
    mbps: float = 50.0,
) -> LabRun:
    """One run of flows of `kind` through the router.

    Raises KdnError when a process fails, and BadInput for a policy that no real network has or when
    nothing comes back.
    """
    check_real(policy)
    delay_ms = 10.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        out = str(Path(folder) / "log.npy")
        receiver = Node(place, _MODULE, "receiver", NodeConfig("reflector", place.host("receiver")))
        stack.callback(receiver.end)
        router = Node(
            place,
            _MODULE,
            "router",
            NodeConfig(
                "router",
                place.host("router"),
                back_host=place.host("back"),
                peer_host=place.host("receiver"),
                peer_port=receiver.port,
                mbps=mbps,
                delay_ms=delay_ms,
            ),
        )
        stack.callback(router.end)
        sender = Node(
            place,
            _MODULE,
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
            ),
        )
        stack.callback(sender.end)
        sent = sender.result()
        log = np.load(out, allow_pickle=False)
        passed, heard = router.finish(), receiver.finish()
    delays = delays_ms(log[log["flow"] == 0], delay_ms)
    return LabRun(delays, sent["mbit"][0] / seconds, sent, passed, heard)


def delays_ms(log: NDArray[Any], path_ms: float) -> NDArray[np.float64]:
    """Round trips of LOG rows above the path's own delay, after the warm-up. Raises BadInput for none."""
    judged = log[log["t_send"] > _WARM_UP_S * SECOND]
    if not len(judged):
        raise BadInput(
            f"no packet sent after {_WARM_UP_S:g} s came back, and {len(log)} before: the run is too "
            "short, the link too slow, or something between the processes swallows the packets"
        )
    return np.asarray((judged["t_ack"] - judged["t_send"]) / MS - path_ms, np.float64)
