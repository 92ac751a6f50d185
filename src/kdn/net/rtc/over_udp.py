"""A call of three processes: this one calls, one is the link, one views; on loopback or in namespaces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdn.clock import SystemClock
from kdn.net.real.place import Node, Place
from kdn.net.rtc.call import Link
from kdn.net.rtc.choose import codec
from kdn.net.rtc.clips import Clip
from kdn.net.rtc.node import RtcNodeConfig
from kdn.net.rtc.real_call import blind_table
from kdn.net.rtc.udp import UdpCall, fingerprint

__all__ = ["UdpRun", "call_over_udp"]

_MODULE = "kdn.net.rtc.node"


@dataclass(frozen=True)
class UdpRun:
    """A finished call, and what the viewer's process says of it."""

    call: UdpCall
    compared: int
    """Pictures that the caller believes shown and that the viewer did show."""
    same: int
    """Those of them whose bytes are equal at both ends."""
    shown_ms: tuple[float, ...]
    """From capture to the end of decoding at the viewer, of each of those."""
    refused: int
    """Datagrams that the viewer could not read."""
    dropped: int
    """Packets that did not fit into the link's queue."""
    lost: int
    """Packets that the link lost."""

    def row(self) -> dict[str, Any]:
        """What a table of calls says beside the call's outcome."""
        return {
            "same_pictures": self.same / max(self.compared, 1),
            "p95_shown_ms": float(np.percentile(self.shown_ms, 95)) if self.shown_ms else None,
        }


def call_over_udp(
    place: Place,
    link: Link,
    clip: Clip,
    codec_name: str,
    seconds: float,
    drive: Callable[[UdpCall], None],
    link_file: Path | None = None,
) -> UdpRun:
    """Start link and viewer, have `drive` step the call to its end, and compare both ends.

    The link's rate is that of `link_file`, or the constant one of `link`.  Raises KdnError when a process
    stops early.
    """
    with ExitStack() as stack:
        config = RtcNodeConfig("viewer", place.host("receiver"), codec=codec_name)
        viewer = Node(place, _MODULE, "receiver", config)
        stack.callback(viewer.end)
        config = RtcNodeConfig(
            "router",
            place.host("router"),
            back_host=place.host("back"),
            peer_host=place.host("receiver"),
            peer_port=viewer.port,
            mbps=link.rate.mean_bps / 1e6,
            link=str(link_file or ""),
            delay_ms=link.delay_ms,
            queue_packets=link.queue_packets,
            loss=link.loss,
        )
        router = Node(place, _MODULE, "router", config)
        stack.callback(router.end)
        udp = stack.enter_context(place.open_socket("sender"))
        chosen = codec(codec_name)
        call = UdpCall(
            blind_table(clip.fps, chosen),
            link,
            seconds,
            clip=clip,
            codec=chosen,
            udp=udp,
            to=(place.host("router"), router.port),
            clock=SystemClock(),
        )
        call.begin()
        drive(call)
        return _compared(call, router.finish(), viewer.finish())


def _compared(call: UdpCall, router: dict[str, Any], viewer: dict[str, Any]) -> UdpRun:
    seen = {number: (at_s, checksum) for number, at_s, checksum in viewer["seen"]}
    both = {frame: seen[n] for frame in call.shown if (n := call.coded_number(frame)) in seen}
    same = sum(fingerprint(call.shown[frame]) == checksum for frame, (_, checksum) in both.items())
    shown = tuple(1e3 * (at_s - call.captured_s(frame)) for frame, (at_s, _) in both.items())
    return UdpRun(
        call, len(both), same, shown, viewer["refused"], router["dropped"], router["lost"]
    )
