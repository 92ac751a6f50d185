"""The neural codec at work: pictures to packets, and from whichever of them arrived to pictures.

Sender and receiver each keep the newest decoded picture.  After a loss they differ; when the sender
hears which packets arrived it replays what the receiver has decoded, and goes on from that picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.rtc.codec.motion import concealed, estimate, moved
from kdn.net.rtc.codec.network import GROUPS, LATENTS, LEVELS, SHRINK, CodecNetwork
from kdn.net.rtc.codec.packets import (
    CodecTables,
    Coded,
    Dealt,
    check_weights,
    deal,
    gather,
    picture_bytes,
    read_header,
)
from kdn.net.rtc.codec.picture import (
    BLOCK,
    Picture,
    blank,
    is_new_scene,
    packed,
    padded,
    unpacked,
)
from kdn.net.rtc.codec.video import PacketPlace

__all__ = ["NeuralCodec", "NeuralDecoder", "NeuralEncoder", "load_codec", "save_codec"]

_PER_GROUP = LATENTS // GROUPS
_PER_BLOCK = BLOCK // SHRINK
_PACKAGED = Path(__file__).parent.parent / "weights"
_TWICE_FROM = 0.04
_HEARD = 0.1
"""What one picture's losses count in the running mean of them."""
_BETWEEN_CUTS = 12
"""Pictures from one intra picture to the next that a new scene may ask for."""
_REPLAYED = 32
"""Sent pictures that are kept for a replay."""


@dataclass(frozen=True)
class NeuralCodec:
    """The trained network and its tables. Holds no picture; any number of calls may share it."""

    network: CodecNetwork
    tables: CodecTables
    survives: bool = True
    spare: float = 0.0

    @property
    def name(self) -> str:
        """As its tables are named."""
        return "masked" if self.network.masked else "unmasked"

    @cached_property
    def weights(self) -> int:
        """A fingerprint of network and tables, 16 bits, which every packet carries."""
        digest = blake2b(digest_size=2)
        for array in _arrays(self).values():
            digest.update(array.tobytes())
        return int.from_bytes(digest.digest(), "big")

    def encoder(self, fps: float) -> NeuralEncoder:
        """An encoder for one call."""
        return NeuralEncoder(self)

    def decoder(self) -> NeuralDecoder:
        """A decoder for one call."""
        return NeuralDecoder(self)

    def place(self, packet: bytes) -> PacketPlace:
        """Where a packet belongs. Raises BadInput as `packets.read_header` does, and for other weights."""
        header = read_header(packet)
        check_weights(header, self.weights)
        return PacketPlace(header.number, header.index, header.count, header.intra)

    def latents(self, picture: Picture, predicted: Picture, intra: bool) -> NDArray[np.float32]:
        """What the picture is beyond its prediction, before any level's quantisation."""
        half = self.network.intra if intra else self.network.inter
        with torch.inference_mode():
            out: torch.Tensor = half.encode(_tensor(picture), _tensor(predicted))
        return np.asarray(out[0].numpy())

    def quantised(self, latents: NDArray[np.float32], level: int, intra: bool) -> NDArray[np.int32]:
        """The latents as whole numbers at a level, in units: [groups * height * width, 18]."""
        rounded = np.rint(latents * self._gain(level, intra)).astype(np.int32)
        _, height, width = rounded.shape
        grouped = rounded.reshape(_PER_GROUP, GROUPS, height * width)
        return np.ascontiguousarray(grouped.transpose(1, 2, 0).reshape(-1, _PER_GROUP))

    def decoded(self, dealt: Dealt, reference: Picture) -> Picture:
        """The picture, from what arrived of it and the reference that its decoder has."""
        header = dealt.header
        height, width = header.rows * _PER_BLOCK, header.columns * _PER_BLOCK
        grouped = dealt.units.reshape(GROUPS, height * width, _PER_GROUP).transpose(2, 0, 1)
        numbers = grouped.reshape(LATENTS, height, width).astype(np.float32)
        numbers = numbers / self._gain(header.level, header.intra)
        if header.intra:
            predicted = blank(header.rows * BLOCK, header.columns * BLOCK)
        else:
            predicted = moved(reference, concealed(dealt.vectors, dealt.vectors_present))
        present = dealt.present.reshape(GROUPS, height, width).astype(np.float32)
        told = present if self.network.masked else np.ones_like(present)
        half = self.network.intra if header.intra else self.network.inter
        with torch.inference_mode():
            out: torch.Tensor = half.decode(
                torch.from_numpy(numbers)[None],
                torch.from_numpy(told)[None],
                _tensor(predicted),
            )
        return unpacked(out[0].numpy())

    def gathered(self, packets: list[bytes]) -> Dealt:
        """What the packets of one picture say. Raises BadInput as `packets.gather` does."""
        dealt = gather(packets, self.tables, GROUPS, _PER_BLOCK, self.weights)
        if dealt.header.level >= LEVELS:
            raise BadInput(f"picture {dealt.header.number} has level {dealt.header.level}")
        return dealt

    def _gain(self, level: int, intra: bool) -> NDArray[np.float32]:
        half = self.network.intra if intra else self.network.inter
        return np.asarray(torch.exp(half.log_gain[level]).detach().numpy())[:, None, None]


@dataclass
class _Sent:
    packets: list[bytes]
    reference: Picture
    """What the sender believed the receiver predicts from."""


@dataclass
class NeuralEncoder:
    """Codes the pictures of one call, in order. The first, and the first of a new scene, are intra and
    need all their packets."""

    codec: NeuralCodec
    _number: int = 0
    reference: Picture | None = None
    """The newest picture, as the sender believes that the receiver has it."""
    _history: dict[int, _Sent] = field(default_factory=dict)
    _intra_due: bool = True
    _newest_intra: int = 0
    newest: tuple[bool, int] = (True, 0)
    """Whether the newest picture is intra, and its level."""
    lost: float = 0.0
    """The share of packets that were lost lately, as far as the sender has heard."""
    copies: int | None = None
    """How many packets each vector goes into; None: two while over 4 % of packets are lost, else one."""

    def encode(self, picture: Picture, budget_bytes: int, key: bool = False) -> list[bytes]:
        """The picture's packets, at the largest level that fits the budget, else at the smallest."""
        self._intra_due = self._intra_due or key
        return self.encode_at(picture, lambda sizes: _largest_within(sizes, budget_bytes))

    def encode_at(
        self, picture: Picture, choose: Callable[[Callable[[int], int]], int]
    ) -> list[bytes]:
        """As `encode`; `choose` is given the size of each level as a function and returns one."""
        picture = padded(picture)
        intra = self._intra_due or self.reference is None
        if self.reference is not None and self.reference.y.shape != picture.y.shape:
            raise BadInput("a call cannot change its picture size; begin another")
        height, width = picture.y.shape
        reference = self.reference or blank(height, width)
        predicted = blank(height, width)
        vectors = np.zeros((height // BLOCK, width // BLOCK, 2), np.int8)
        if not intra:
            found = estimate(picture, reference)
            moved_there = moved(reference, found)
            intra = self._may_be_cut and is_new_scene(picture, moved_there)
            if not intra:
                vectors, predicted = found, moved_there
        latents = self.codec.latents(picture, predicted, intra)
        grid = (GROUPS, *latents.shape[1:])
        copies = self.copies or (2 if self.lost > _TWICE_FROM else 1)

        def coded(level: int) -> Coded:
            units = self.codec.quantised(latents, level, intra)
            own = self.codec.weights
            return Coded(self._number, intra, level, units, grid, vectors, copies, own)

        level = choose(lambda at: picture_bytes(coded(at), self.codec.tables))
        packets = deal(coded(level), self.codec.tables)
        self._keep(packets, reference)
        self.newest = intra, level
        self._newest_intra = self._number if intra else self._newest_intra
        self._number += 1
        self._intra_due = False
        return packets

    @property
    def _may_be_cut(self) -> bool:
        return self._number - self._newest_intra >= _BETWEEN_CUTS

    def learn(self, number: int, arrived: Collection[int]) -> None:
        """The receiver has decoded picture `number` from these packets: replay if some were missing.

        An empty collection means that it never decoded the picture.
        """
        sent = self._history.get(number)
        if sent is None:
            return
        share = 1.0 - len(arrived) / max(len(sent.packets), 1)
        self.lost += _HEARD * (share - self.lost)
        if len(arrived) == len(sent.packets):
            return
        if number == 0 or (not arrived and read_header(sent.packets[0]).intra):
            self._intra_due = True
            return
        kept = [packet for index, packet in enumerate(sent.packets) if index in arrived]
        shown = sent.reference
        for later in range(number, self._number):
            packets = kept if later == number else self._history[later].packets
            self._history[later] = _Sent(packets, shown)
            if packets:
                shown = self.codec.decoded(self.codec.gathered(packets), shown)
        self.reference = shown

    def _keep(self, packets: list[bytes], reference: Picture) -> None:
        self._history[self._number] = _Sent(packets, reference)
        self._history.pop(self._number - _REPLAYED, None)
        self.reference = self.codec.decoded(self.codec.gathered(packets), reference)


@dataclass
class NeuralDecoder:
    """Decodes the pictures of one call, each from the packets that have arrived of it."""

    codec: NeuralCodec
    shown: Picture | None = None
    damaged: int = 0
    """Packets that were refused."""

    def decode(self, packets: Collection[bytes]) -> Picture | None:
        """The next picture; None when nothing readable arrived, or the first is not whole yet.

        Raises BadInput when the packets were coded with other weights.
        """
        good = []
        for packet in packets:
            try:
                read_header(packet)
            except BadInput:
                self.damaged += 1
            else:
                good.append(packet)
        if not good:
            return None
        dealt = self.codec.gathered(good)
        header = dealt.header
        if self.shown is None and (not header.intra or len(good) < header.count):
            return None
        reference = self.shown or blank(header.rows * BLOCK, header.columns * BLOCK)
        self.shown = self.codec.decoded(dealt, reference)
        return self.shown


def load_codec(masked: bool = True, path: Path | None = None) -> NeuralCodec:
    """The packaged codec or its unmasked twin, or one from a file that `save_codec` wrote."""
    where = path or _PACKAGED / ("codec.npz" if masked else "twin.npz")
    if not where.is_file():
        raise BadInput(
            f"there are no codec weights at {where}; train them by python -m scripts.rtc.train_codec"
        )
    with np.load(where, allow_pickle=False) as stored:
        tables = CodecTables(stored["tables.scales"], stored["tables.mixes"].astype(np.float64))
        network = CodecNetwork(bool(stored["masked"]))
        state = {
            name: torch.from_numpy(stored[name].astype(np.float32)) for name in network.state_dict()
        }
    network.load_state_dict(state)
    return NeuralCodec(network.eval(), tables)


def save_codec(codec: NeuralCodec, path: Path) -> None:
    """Weights as half floats, and the tables."""
    np.savez_compressed(path, **_arrays(codec))  # type: ignore[arg-type]


def _arrays(codec: NeuralCodec) -> dict[str, NDArray[np.generic]]:
    """All that a file of weights holds, in its order."""
    arrays = {name: value.half().numpy() for name, value in codec.network.state_dict().items()}
    arrays["masked"] = np.array(codec.network.masked)
    arrays["tables.scales"] = codec.tables.scales
    arrays["tables.mixes"] = codec.tables.mixes.astype(np.float32)
    return arrays


def _largest_within(sizes: Callable[[int], int], budget_bytes: int) -> int:
    """The largest level whose size is within the budget, by bisection; 0 if none is."""
    low, high = 0, LEVELS
    while high - low > 1:
        middle = (low + high) // 2
        if sizes(middle) <= budget_bytes:
            low = middle
        else:
            high = middle
    return low


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(packed(picture))[None]
