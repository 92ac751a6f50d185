"""The classical rival with real pictures: H.264 by PyAV (x264, no delay), and repair packets.

A picture's stream is cut into equal pieces, and repair pieces are added up to the share `spare` of all.
Any loss within their number is repaired; any beyond it loses the picture, and all that follow until the
next intra picture.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Collection
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from kdn.errors import BadInput, MissingExtra
from kdn.net.rtc.clips import as_frame, from_frame
from kdn.net.rtc.codec.packets import LEAST_PACKETS, MOST_PAYLOAD
from kdn.net.rtc.codec.picture import Picture
from kdn.net.rtc.codec.repair import recover, repair
from kdn.net.rtc.codec.video import PacketPlace

__all__ = ["H264", "H264Decoder", "H264Encoder", "pieces_of"]

_HEADER = struct.Struct("<IBBB?IH")
_MOST_PACKETS = 255
_OPEN_BPS = 3_000_000
"""x264 changes a stream's rate only when the stream begins with the highest rate that it may have."""
_LEAST_BPS = 20_000


@dataclass(frozen=True)
class _PieceHeader:
    """What the first bytes of a packet say."""

    number: int
    index: int
    count: int
    needed: int
    """So many of its packets give the picture back."""
    intra: bool
    size: int
    """Bytes of the picture's stream."""


@dataclass(frozen=True)
class H264:
    """The codec; `spare` is the share of a picture's packets that repair others."""

    spare: float = 0.3
    survives: bool = False

    @property
    def name(self) -> str:
        """As its tables are named."""
        return f"h264+fec{round(self.spare * 100)}"

    def encoder(self, fps: float) -> H264Encoder:
        """An encoder for one call."""
        return H264Encoder(fps, self.spare)

    def decoder(self) -> H264Decoder:
        """A decoder for one call."""
        return H264Decoder()

    def place(self, packet: bytes) -> PacketPlace:
        """Where a packet belongs. Raises BadInput for bytes that are no packet."""
        header = _read(packet)
        return PacketPlace(header.number, header.index, header.count, header.intra)


@dataclass
class H264Encoder:
    """Each picture gets about its budget: the stream's rate is set again before each.

    Sizes follow a change of the budget within some ten pictures; intra pictures are larger.  Raises
    MissingExtra without PyAV.
    """

    fps: float
    spare: float
    newest: tuple[bool, int] = (True, 0)
    _number: int = 0
    _stream: Any = None
    _shape: tuple[int, ...] = ()

    def encode(self, picture: Picture, budget_bytes: int, key: bool = False) -> list[bytes]:
        """The picture's packets, repair packets included; the budget does not include those.

        Raises BadInput when the size of the picture changes or over 255 packets would be needed.
        """
        if self._stream is None:
            self._stream, self._shape = _open(picture, self.fps), picture.y.shape
        if picture.y.shape != self._shape:
            raise BadInput("a call cannot change its picture size; begin another")
        self._stream.bit_rate = max(int(budget_bytes * 8 * self.fps), _LEAST_BPS)
        frame = as_frame(picture)
        frame.pts = self._number
        if key:
            frame.pict_type = _av().video.frame.PictureType.I
        coded = self._stream.encode(frame)
        intra = any(packet.is_keyframe for packet in coded)
        packets = _cut(b"".join(map(bytes, coded)), self._number, intra, self.spare)
        self.newest = intra, 0
        self._number += 1
        return packets

    def learn(self, number: int, arrived: Collection[int]) -> None:
        """Nothing: a lost picture is answered by `key`."""


@dataclass
class H264Decoder:
    """Decodes a picture whose packets, or repair packets in their place, have arrived."""

    damaged: int = 0
    """Packets that were refused."""
    _newest: int = -1
    _stream: Any = field(default=None)

    def decode(self, packets: Collection[bytes]) -> Picture | None:
        """The picture; None when too little arrived, or what it is predicted from was lost."""
        pieces: dict[int, bytes] = {}
        header: _PieceHeader | None = None
        for packet in packets:
            try:
                header = _read(packet)
            except BadInput:
                self.damaged += 1
            else:
                pieces[header.index] = packet[_HEADER.size :]
        if header is None or len(pieces) < header.needed:
            return None
        if not header.intra and header.number != self._newest + 1:
            return None
        whole = recover({i: np.frombuffer(p, np.uint8) for i, p in pieces.items()}, header.needed)
        return self._shown(whole.tobytes()[: header.size], header.number)

    def _shown(self, stream: bytes, number: int) -> Picture | None:
        av = _av()
        if self._stream is None:
            self._stream = av.CodecContext.create("h264", "r")
            self._stream.thread_count = 1  # more threads give pictures later
        try:
            frames = self._stream.decode(av.Packet(stream))
        except av.error.FFmpegError:
            return None
        self._newest = number
        return from_frame(frames[-1]) if frames else None


def pieces_of(size_bytes: int, spare: float) -> tuple[int, int]:
    """(pieces, repair pieces) of a picture: as many repair pieces as the call's loop supposes.

    >>> pieces_of(3000, 0.3)
    (6, 2)
    """
    least = max(-(-size_bytes // (MOST_PAYLOAD - _HEADER.size)), LEAST_PACKETS)
    count = int(least / (1.0 - spare)) + 1 if spare > 0.0 else least
    repairs = int(spare * count)
    return count - repairs, repairs


def _cut(stream: bytes, number: int, intra: bool, spare: float) -> list[bytes]:
    """The packets of one picture."""
    needed, repairs = pieces_of(len(stream), spare)
    count = needed + repairs
    if count > _MOST_PACKETS:
        raise BadInput(f"picture {number} needs over 255 packets; scale the video down")
    length = -(-len(stream) // needed)
    filled = stream.ljust(needed * length, b"\0")
    pieces = np.frombuffer(filled, np.uint8).reshape(needed, length)
    every = np.concatenate((pieces, repair(pieces, repairs))) if repairs else pieces
    return [
        _write(_PieceHeader(number, index, count, needed, intra, len(stream)), piece.tobytes())
        for index, piece in enumerate(every)
    ]


def _write(header: _PieceHeader, body: bytes) -> bytes:
    blank = _HEADER.pack(*astuple(header), 0)[:-2]
    return blank + _check(blank + body).to_bytes(2, "little") + body


def _read(packet: bytes) -> _PieceHeader:
    if len(packet) < _HEADER.size:
        raise BadInput(f"a video packet has at least {_HEADER.size} bytes, this one {len(packet)}")
    *fields, check = _HEADER.unpack_from(packet)
    header = _PieceHeader(*fields)
    if check != _check(packet[: _HEADER.size - 2] + packet[_HEADER.size :]):
        raise BadInput(f"packet {header.index} of picture {header.number} is damaged")
    if not 0 < header.needed <= header.count or header.index >= header.count:
        raise BadInput(f"packet {header.index} of picture {header.number} contradicts itself")
    return header


def _check(data: bytes) -> int:
    return binascii.crc_hqx(data, 0xFFFF)


def _open(picture: Picture, fps: float) -> Any:
    height, width = picture.y.shape
    stream: Any = _av().CodecContext.create("libx264", "w")
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.framerate = max(round(fps), 1)
    stream.bit_rate = _OPEN_BPS
    stream.options = {
        "preset": "medium",
        "tune": "zerolatency",
        "forced-idr": "1",
        "maxrate": str(_OPEN_BPS),
        "bufsize": str(int(_OPEN_BPS / fps)),  # one picture
        "x264-params": "keyint=infinite:scenecut=0:log-level=none",
    }
    stream.open()
    return stream


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("H.264 comes with PyAV: pip install 'kdn[rtc]'") from error
    return av
