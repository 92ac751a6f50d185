"""The other two processes of a call over sockets: `python -m kdn.net.rtc.node '{"role": ...}'`.

Prints one line of JSON when it is ready (with its port), runs until its standard input ends, and prints what
it has seen.  The router plays a link in user space; the viewer answers and decodes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from kdn.clock import SystemClock
from kdn.net.real.place import tell_parent, until_parent_ends
from kdn.net.real.router import Router
from kdn.net.real.wire import open_socket
from kdn.net.rtc.call import Link
from kdn.net.rtc.choose import codec
from kdn.net.rtc.clips import generated
from kdn.net.rtc.udp import Viewer
from kdn.net.world.traces import constant, read_link

__all__ = ["RtcNodeConfig", "main"]


class RtcNodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What a node is told: the first five for a router, `codec` for a viewer."""

    role: str
    host: str
    back_host: str = ""
    peer_host: str = ""
    peer_port: int = 0
    mbps: float = 1.0
    link: str = ""
    """A file of a recorded link, in place of `mbps`."""
    delay_ms: float = 25.0
    queue_packets: int = 50
    loss: float = 0.0
    codec: str = "masked"


def _route(config: RtcNodeConfig) -> None:
    rate = read_link(Path(config.link)) if config.link else constant(config.mbps * 1e6)
    link = Link("real", rate, config.delay_ms, config.queue_packets, config.loss, aqm="droptail")
    front, back = open_socket(config.host), open_socket(config.back_host)
    peer = (config.peer_host, config.peer_port)
    router = Router(link.hop(), front, back, peer, SystemClock())
    tell_parent(port=front.getsockname()[1])
    cpu_s = until_parent_ends(router.step)
    router.check()
    tell_parent(forwarded=router.forwarded, dropped=router.dropped, lost=router.lost, cpu_s=cpu_s)


def _view(config: RtcNodeConfig) -> None:
    chosen, udp = codec(config.codec), open_socket(config.host)
    encoder, decoder = chosen.encoder(25.0), chosen.decoder()
    for picture in generated(1, 2, 96, 128).pictures:
        decoder.decode(
            encoder.encode(picture, 1000)
        )  # so that the first real one finds all compiled
    viewer = Viewer(udp, chosen, SystemClock())
    tell_parent(port=udp.getsockname()[1])
    cpu_s = until_parent_ends(viewer.step)
    seen = [(one.number, one.at_s, one.checksum) for one in viewer.seen]
    tell_parent(seen=seen, refused=viewer.refused, cpu_s=cpu_s)


ROLES = {"router": _route, "viewer": _view}


def main() -> None:
    """Play the role that the first argument describes."""
    config = msgspec.json.decode(sys.argv[1], type=RtcNodeConfig)
    ROLES[config.role](config)


if __name__ == "__main__":
    main()
