"""A call whose pictures are really coded: the same loop as by table, with the codec at both ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kdn.errors import KdnError
from kdn.net.rtc import loop
from kdn.net.rtc.call import Call, Link
from kdn.net.rtc.clips import Clip
from kdn.net.rtc.codec.network import LEVELS
from kdn.net.rtc.codec.picture import Picture, psnr_db, ssim
from kdn.net.rtc.codec.video import VideoCodec
from kdn.net.rtc.rows import CODED, DECODED, PACKET_ACKED
from kdn.net.rtc.tables import LOSSES, RateTable

__all__ = ["RealCall", "blind_table"]


def blind_table(fps: float, codec: VideoCodec) -> RateTable:
    """A table that knows nothing, for calls whose pictures are really coded."""
    flat = np.ones((1, LEVELS, len(LOSSES)))
    sizes = np.ones((1, LEVELS), np.int64)
    return RateTable("live", codec.name, fps, sizes, sizes, flat, flat, codec.survives, codec.spare)


@dataclass
class RealCall(Call):
    """Codes the clip's pictures (forth and back) and decodes what arrives of them."""

    clip: Clip = field(kw_only=True)
    codec: VideoCodec = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._encoder = self.codec.encoder(self.clip.fps)
        self._decoder = self.codec.decoder()
        self._packets: dict[int, list[bytes]] = {}
        self._coded: dict[int, int] = {}
        self._decoded = self._learned = 0
        self.shown: dict[int, Picture] = {}
        """What the viewer saw, by the number of the picture."""

    @staticmethod
    def over(link: Link, clip: Clip, codec: VideoCodec, seconds: float, seed: int = 1) -> RealCall:
        """A call over the link, ready to be stepped."""
        return RealCall(blind_table(clip.fps, codec), link, seconds, seed, clip=clip, codec=codec)

    def original(self, number: int) -> Picture:
        """The picture that was captured."""
        return self.clip.pictures[loop.place_of(number, len(self.clip.pictures))]

    def coded_number(self, number: int) -> int:
        """The number that the codec gave the call's picture: pictures that were not coded have none."""
        return self._coded[number]

    def _advance(self, until: int) -> None:
        while True:
            reason = loop.advance(self.state, self.world, until, False)
            self._decode_new()
            self._teach()
            if reason == loop.TIME:
                return
            if reason == loop.FULL:
                raise KdnError(
                    "a call has more packets than it was built for; lower its highest rate"
                )
            self._capture()

    def _capture(self) -> None:
        """Code the next picture for what the rate leaves for it, unless the pacer has enough."""
        if loop.holds_enough(self.state):
            loop.book(self.state, self.now_ns, 0, 0, False)
            return
        number = int(self.state.call[0]["num_frames"])
        budget = int(loop.budget_bytes(self.state))
        key = bool(self.state.call[0]["key_due"])
        packets = self._encoder.encode(self.original(number), budget, key)
        intra, level = self._encoder.newest
        frame = loop.book(self.state, self.now_ns, level, len(packets), intra)
        for index, packet in enumerate(packets):
            loop.add_packet(self.state, frame, index, len(packet))
        loop.settle(self.state, frame)
        self._coded[frame] = len(self._packets)
        self._packets[frame] = packets

    def _decode_new(self) -> None:
        """Decode what the loop has released, in order, from the packets that had arrived."""
        frames = self.state.frames
        while self._decoded < int(self.state.call[0]["next_decode"]):
            number = self._decoded
            row = frames[number]
            if row["fate"] == DECODED:
                packets = [self._packets[number][i] for i in sorted(self._arrived(number))]
                shown = self._decoder.decode(packets)
                assert shown is not None, f"picture {number} was released but does not decode"
                self.shown[number] = shown
                original = self.original(number)
                row["quality"], row["psnr"] = ssim(shown, original), psnr_db(shown, original)
            self._decoded += 1

    def _teach(self) -> None:
        """Tell the encoder what the receiver has decoded, as the acknowledgements say."""
        known = int(self.state.call[0]["known_frames"])
        while self._learned < min(known, self._decoded):
            number = self._learned
            fate = int(self.state.frames[number]["fate"])
            if number in self._packets and fate != CODED:
                arrived = self._arrived(number) if fate == DECODED else set()
                self._encoder.learn(self._coded[number], arrived)
            self._learned += 1

    def _arrived(self, number: int) -> set[int]:
        """The places in the picture of its packets that were acknowledged."""
        row = self.state.frames[number]
        sent = self.state.sent[int(row["first"]) : int(self.state.call[0]["num_packets"])]
        own = sent[: 4 * int(row["count"]) + 64] if not row["intra"] else sent
        mine = own[(own["frame"] == number) & (own["status"] == PACKET_ACKED)]
        return {int(index) for index in mine["index"]}
