"""One process of the real laboratory: `python -m kdn.net.l4s.node '{"role": ...}'`.

Prints one line of JSON when it is ready (with its port) and one when it is done.  Router and
reflector run until their standard input ends.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import msgspec
import numpy as np

from kdn.clock import SystemClock
from kdn.net.l4s.choosers import chooser, marking_of
from kdn.net.l4s.policy import Learner, SwiftQueue
from kdn.net.l4s.scenarios import WEIGHTS
from kdn.net.real.place import tell_parent, until_parent_ends
from kdn.net.real.reflector import Reflector
from kdn.net.real.router import Router
from kdn.net.real.sender import Sender
from kdn.net.real.wire import open_socket
from kdn.net.world.records import ECT1, LOG, MS
from kdn.net.world.spec import Flow, Hop, Queue, Scenario, frames, steady, web
from kdn.net.world.traces import constant
from kdn.net.world.world import Chooser, ChooserQuestion

__all__ = ["NodeConfig", "main", "real_flows"]


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What a node is told."""

    role: str
    host: str
    peer_host: str = ""
    peer_port: int = 0
    back_host: str = ""
    mbps: float = 50.0
    delay_ms: float = 10.0
    kind: str = "video"
    policy: str = "all-L"
    seconds: float = 8.0
    out: str = ""


def real_flows(kind: str, policy: str) -> tuple[Flow, ...]:
    """Flow 0 is judged. "floor" is it alone, "load" and "overload" 60 Mbit/s of it."""
    app = steady(4.0, 1400)
    own = Flow("prague", "ect1", app, packet=1400, marking=marking_of(policy), logged=True)
    if policy == "all-C":
        own = replace(own, control="cubic", ecn="ect0")
    if kind == "floor":
        return (own,)
    if kind in {"load", "overload"}:
        return (replace(own, control="unresponsive", app=steady(60.0, 1400)),)
    video = Flow("unresponsive", "ect1", frames(14.0, 60.0), packet=1400)
    page = Flow("cubic", "ect0", web(1.0, 50e3), packet=1400)
    return (own, video, page)


def _run_router(config: NodeConfig) -> None:
    hop = Hop(constant(config.mbps * 1e6), Queue(weights=WEIGHTS["1/16"]), delay_ms=config.delay_ms)
    front, back = open_socket(config.host), open_socket(config.back_host)
    peer = (config.peer_host, config.peer_port)
    router = Router(hop, front, back, peer, SystemClock())
    tell_parent(port=front.getsockname()[1])
    cpu_s = until_parent_ends(router.step)
    router.check()
    low, classic = router.marked
    tell_parent(
        forwarded=router.forwarded,
        dropped=router.dropped,
        marked_l=low,
        marked_c=classic,
        cpu_s=cpu_s,
    )


def _run_reflector(config: NodeConfig) -> None:
    udp = open_socket(config.host)
    reflector = Reflector(udp)
    tell_parent(port=udp.getsockname()[1])
    until_parent_ends(reflector.step)
    tell_parent(received=reflector.received, bleached=reflector.bleached)


def _warm(policy: str) -> None:
    """Have a policy's compiled rules ready before the first packet."""
    made = chooser(policy)
    if made is None:
        return
    acks = np.zeros(40, LOG)
    acks["t_send"] = np.arange(40) * MS
    acks["t_ack"] = acks["t_send"] + 10 * MS
    acks["sent_ecn"] = ECT1
    for _ in range(2):
        made.choose(ChooserQuestion(0, 60 * MS, acks, 1500, ECT1, 1500, 20.0 * MS))


def _end_tuning(made: Chooser | None) -> list[int]:
    """Steps kept and taken back by a predictor that learned while sending."""
    if not (isinstance(made, SwiftQueue) and isinstance(made.forecaster, Learner)):
        return [0, 0]
    made.forecaster.close()
    return [made.forecaster.accepted, made.forecaster.rejected]


def _run_sender(config: NodeConfig) -> None:
    hop = Hop(constant(config.mbps * 1e6))
    flows = real_flows(config.kind, config.policy)
    scenario = Scenario("real", (hop,), flows, config.seconds, seed=1)
    made = chooser(config.policy, background=True)
    _warm(config.policy)
    peer = (config.peer_host, config.peer_port)
    choosers = {} if made is None else {0: made}
    sender = Sender(scenario, open_socket(config.host), peer, SystemClock(), choosers)
    tell_parent(port=0)
    before = time.process_time()
    sender.run(config.seconds)
    np.save(config.out, sender.log(), allow_pickle=False)
    tuned = _end_tuning(made)
    flow = sender.flows[0]
    tell_parent(
        decision_us=sender.decision_us,
        decisions=sender.decisions,
        switches=int(flow["switches"]),
        lost=int(flow["lost"]),
        sent=int(flow["sent"]),
        sent_l=int(flow["sent_l"]),
        late=int(flow["late"]),
        cpu_s=time.process_time() - before,
        tuned=tuned,
        mbit=[float(f["acked_bytes"]) * 8e-6 for f in sender.flows],
    )


ROLES = {"router": _run_router, "reflector": _run_reflector, "sender": _run_sender}


def main() -> None:
    """Play the role that the first argument describes."""
    config = msgspec.json.decode(sys.argv[1], type=NodeConfig)
    ROLES[config.role](config)


if __name__ == "__main__":
    main()
