"""What a call asks of a codec: an encoder, a decoder, and where a packet belongs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from kdn.net.rtc.codec.picture import Picture

__all__ = ["PacketPlace", "VideoCodec", "VideoDecoder", "VideoEncoder"]


@dataclass(frozen=True)
class PacketPlace:
    """The coded picture that a packet belongs to, and its place in it."""

    number: int
    index: int
    count: int
    """Packets of the picture, repair packets included."""
    intra: bool


class VideoEncoder(Protocol):
    """Codes the pictures of one call, in order."""

    newest: tuple[bool, int]
    """Whether the newest picture is intra, and its level."""

    def encode(self, picture: Picture, budget_bytes: int, key: bool = False) -> list[bytes]:
        """The picture's packets, for about that many bytes; `key` asks for a picture that stands alone."""

    def learn(self, number: int, arrived: Collection[int]) -> None:
        """Picture `number` was decoded from these packets; from none: it was never decoded."""


class VideoDecoder(Protocol):
    """Decodes the pictures of one call, in order."""

    def decode(self, packets: Collection[bytes]) -> Picture | None:
        """The next picture from what arrived of it; None when that is too little."""


class VideoCodec(Protocol):
    """A codec. It holds no picture: any number of calls may share it."""

    @property
    def name(self) -> str:
        """As in tables and tables' names."""

    @property
    def survives(self) -> bool:
        """True: any tenth of a picture's packets decodes. False: all but the repair share must arrive."""

    @property
    def spare(self) -> float:
        """The share of a picture's packets that repair others."""

    def encoder(self, fps: float) -> VideoEncoder:
        """An encoder for one call of so many pictures a second."""

    def decoder(self) -> VideoDecoder:
        """A decoder for one call."""

    def place(self, packet: bytes) -> PacketPlace:
        """Where a packet belongs. Raises BadInput for bytes that are no packet of this codec."""
