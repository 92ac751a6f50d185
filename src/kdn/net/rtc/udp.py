"""A call over real UDP sockets: the same loop, pacer, codec and decode rule, with real time and real bytes.

The caller sends to a router (`net.real.Router`), which forwards to the viewer; the viewer answers each packet
with when it came, and decodes.  Sender and viewer run on one machine or agree on `time.monotonic`.
`over_udp.py` starts all three.
"""

from __future__ import annotations

import select
import socket
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from kdn.clock import Clock
from kdn.errors import BadInput
from kdn.net.real import wire
from kdn.net.rtc import loop
from kdn.net.rtc.codec.picture import Picture
from kdn.net.rtc.codec.video import PacketPlace, VideoCodec
from kdn.net.rtc.real_call import RealCall
from kdn.net.rtc.rows import PACKET_SENT, PADDING
from kdn.net.world.records import SECOND

__all__ = ["Seen", "UdpCall", "Viewer", "fingerprint"]

_FLOW = 0
_TIME = struct.Struct("!d")
_NAP_S = 0.005


def fingerprint(picture: Picture) -> int:
    """A checksum of the picture's bytes: equal at both ends, or the ends differ."""
    return zlib.crc32(
        picture.v.tobytes(), zlib.crc32(picture.u.tobytes(), zlib.crc32(picture.y.tobytes()))
    )


@dataclass(frozen=True)
class Seen:
    """A picture that the viewer showed. `number` counts the pictures that were coded."""

    number: int
    at_s: float
    """When it was decoded, by the viewer's clock."""
    checksum: int


@dataclass
class Viewer:
    """Receives, answers and decodes. A picture waits until it is whole or a later one has begun."""

    udp: socket.socket
    codec: VideoCodec
    clock: Clock
    seen: list[Seen] = field(default_factory=list)
    refused: int = 0
    _packets: dict[int, dict[int, bytes]] = field(default_factory=dict)
    _places: dict[int, PacketPlace] = field(default_factory=dict)
    _next: int = 0

    def __post_init__(self) -> None:
        self._decoder = self.codec.decoder()

    def step(self, wait_s: float = 0.02) -> None:
        """Take what has come, waiting at most `wait_s` for it."""
        ready, _, _ = select.select([self.udp], [], [], wait_s)
        if not ready:
            return
        while (found := wire.receive(self.udp)) is not None:
            data, _, source = found
            now = self.clock.now()  # before anything is decoded
            try:
                said = wire.read(data)
            except BadInput:
                self.refused += 1
                continue
            answer = wire.write(wire.Datagram(True, said.flow, said.seq, 0, 0)) + _TIME.pack(now)
            wire.send(self.udp, answer, source, 0)
            self._take(data[wire.HEADER_BYTES :])

    def _take(self, packet: bytes) -> None:
        try:
            place = self.codec.place(packet)
        except BadInput:
            self.refused += int(packet.strip(b"\0") != b"")  # padding is all zeros
            return
        if place.number >= self._next:
            self._packets.setdefault(place.number, {})[place.index] = packet
            self._places[place.number] = place
        self._show(max(self._packets, default=0))

    def _show(self, newest: int) -> None:
        """As the call's loop decides: in order, whole or followed, with a tenth of the packets."""
        while self._next <= newest:
            have = self._packets.get(self._next, {})
            if self._waits(have, newest):
                return
            if have and len(have) >= loop.LEAST_SHARE * self._places[self._next].count:
                shown = self._decoder.decode([have[i] for i in sorted(have)])
                if shown is not None:
                    self.seen.append(Seen(self._next, self.clock.now(), fingerprint(shown)))
            self._packets.pop(self._next, None)
            self._next += 1

    def _waits(self, have: dict[int, bytes], newest: int) -> bool:
        """May more of the next picture come, and is it worth waiting for?"""
        if not have:
            return self._next == 0 and self.codec.survives
        place = self._places[self._next]
        if len(have) == place.count:
            return False
        return self._next == newest or (place.intra and self.codec.survives)


@dataclass
class UdpCall(RealCall):
    """The caller. Steps take real time; the link is what stands between the sockets."""

    udp: socket.socket = field(kw_only=True)
    to: tuple[str, int] = field(kw_only=True)
    clock: Clock = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._zero = self.clock.now()

    def captured_s(self, frame: int) -> float:
        """When a picture was captured, by the clock."""
        return self._zero + float(self.state.frames[frame]["t"]) / SECOND

    @property
    def now_ns(self) -> int:
        return int((self.clock.now() - self._zero) * SECOND)

    def begin(self) -> None:
        """Call every compiled rule and the codec once, on copies; then time begins."""
        spare = self.state._replace(
            **{name: getattr(self.state, name).copy() for name in ("call", "frames", "sent")}
        )
        self.codec.decoder().decode(
            self.codec.encoder(self.clip.fps).encode(self.original(0), 1000)
        )
        loop.holds_enough(spare)
        loop.budget_bytes(spare)
        frame = loop.book(spare, 0, 0, 1, True)
        loop.add_packet(spare, frame, 0, 100)
        loop.settle(spare, frame)
        loop.pad(spare)
        loop.take_packet(spare, 0)
        loop.arrived(spare, 0, 0, 0)
        self.state.num_acks[0] = 0
        self._zero = self.clock.now()

    def _advance(self, until: int) -> None:
        row = self.state.call[0]
        while (now := self.now_ns) < until:
            if now >= int(row["next_capture"]):
                self._capture()
                continue
            if int(row["next_packet"]) < int(row["num_packets"]) and int(row["next_send"]) <= now:
                self._send(now)
                continue
            if float(row["probe"]) > 0 and int(row["next_send"]) <= now:
                loop.pad(self.state)
                continue
            self._hear(max(min((self._due(until) - now) / SECOND, _NAP_S), 0.0))
            self._decode_new()
            self._teach()

    def _due(self, until: int) -> int:
        row = self.state.call[0]
        due = min(until, int(row["next_capture"]))
        if int(row["next_packet"]) < int(row["num_packets"]):
            due = min(due, int(row["next_send"]))
        return due

    def _send(self, now: int) -> None:
        seq = int(self.state.call[0]["num_sent"])
        packet = self.state.sent[loop.take_packet(self.state, now)]
        frame = int(packet["frame"])
        body = bytes(int(packet["size"]) - 28)
        if frame != PADDING:
            body = self._packets[frame][int(packet["index"])]
        data = wire.write(wire.Datagram(False, _FLOW, seq, 0, 0)) + body
        wire.send(self.udp, data, self.to, 0)

    def _hear(self, wait_s: float) -> None:
        ready, _, _ = select.select([self.udp], [], [], wait_s)
        if not ready:
            return
        while (found := wire.receive(self.udp)) is not None:
            try:
                said = wire.read(found[0])
            except BadInput:
                continue
            if not said.feedback or len(found[0]) < wire.HEADER_BYTES + _TIME.size:
                continue
            (at,) = _TIME.unpack_from(found[0], wire.HEADER_BYTES)
            if said.seq < int(self.state.call[0]["num_sent"]):
                loop.arrived(self.state, said.seq, int((at - self._zero) * SECOND), self.now_ns)

    def _in_flight(self) -> int:
        sent = self.state.sent[: int(self.state.call[0]["next_packet"])]
        return int(np.sum(sent["size"][sent["status"] == PACKET_SENT]))
