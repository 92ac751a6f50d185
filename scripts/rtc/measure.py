"""Measure a neural codec on a clip: the table that calls replay, and how damage is inherited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdn.net.rtc.clips import Clip
from kdn.net.rtc.codec.motion import estimate, moved
from kdn.net.rtc.codec.network import GROUPS, LEVELS
from kdn.net.rtc.codec.neural import NeuralCodec
from kdn.net.rtc.codec.packets import Coded, Dealt, PacketHeader, deal
from kdn.net.rtc.codec.picture import BLOCK, Picture, blank, padded, psnr_db, ssim
from kdn.net.rtc.tables import LOSSES, RateTable

__all__ = ["WARM", "measure_codec"]

_MEASURED = (0, 3, 6, 9)
"""Tenths of loss that are decoded; the table's others lie on lines between them."""
_CARRY_LOSS = 0.3
_CARRY_EVERY = 5
WARM = 6
"""Pictures that are coded before the first one of a table."""


def measure_codec(
    codec: NeuralCodec,
    name: str,
    clip: Clip,
    seed: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> RateTable:
    """The clip at every level, each coded from its own decoded pictures, under random losses of units.

    Some pictures are played backwards first, as a call does between two passes: the first row of a table is
    no intra picture, since one that loses units looks far worse and a call sends what it loses again.
    Every loss hits one picture whose predecessor was whole; what later pictures inherit is `carry`.
    """
    random = np.random.default_rng(seed)
    num = len(clip.pictures)
    sizes, intra_sizes = np.zeros((num, LEVELS), np.int64), np.zeros((num, LEVELS), np.int64)
    quality, decibels = np.zeros((num, LEVELS, len(LOSSES))), np.zeros((num, LEVELS, len(LOSSES)))
    inherited: list[tuple[float, float]] = []
    for level in range(LEVELS):
        shown = _warmed(codec, clip, level)
        harmed: Picture | None = None
        damage = 0.0
        for i, original in enumerate(clip.pictures):
            picture = padded(original)
            if i % 10 == 0:
                alone, _ = _code(codec, picture, None, level)
                intra_sizes[i:, level] = _size(codec, alone)
            coded, reference = _code(codec, picture, shown, level)
            sizes[i, level] = _size(codec, coded)
            dealt = _whole(coded)
            found = []
            for tenth in _MEASURED:
                lossy = dealt if tenth == 0 else _lose(dealt, tenth / 10, random)
                out = codec.decoded(lossy, reference)
                found.append((ssim(out, original), psnr_db(out, original)))
                if tenth == 0:
                    clean = out
                if tenth == 10 * _CARRY_LOSS:
                    hit = out
            if harmed is not None:
                again = codec.decoded(dealt, harmed)
                inherited.append((damage, found[0][0] - ssim(again, original)))
            harmed = hit if i % _CARRY_EVERY == 0 else None
            damage = found[0][0] - found[_MEASURED.index(int(10 * _CARRY_LOSS))][0]
            shown = clean
            tenths = np.arange(len(LOSSES))
            quality[i, level] = np.interp(tenths, _MEASURED, [f[0] for f in found])
            decibels[i, level] = np.interp(tenths, _MEASURED, [f[1] for f in found])
            tick()
    return RateTable(
        clip.name,
        name,
        clip.fps,
        np.maximum.accumulate(sizes, axis=1),
        np.maximum.accumulate(intra_sizes, axis=1),
        quality,
        decibels,
        survives=True,
        carry=_ratio(inherited),
    )


def _warmed(codec: NeuralCodec, clip: Clip, level: int) -> Picture | None:
    """What is shown when a call comes back to the first picture; None for a clip of one picture."""
    shown: Picture | None = None
    for original in clip.pictures[WARM:0:-1]:
        coded, reference = _code(codec, padded(original), shown, level)
        shown = codec.decoded(_whole(coded), reference)
    return shown


def _ratio(pairs: list[tuple[float, float]]) -> float:
    """Damage of the next picture over damage of the picture that was hit, in sums; 0 to 1."""
    hit, after = (sum(p[i] for p in pairs) for i in range(2)) if pairs else (1.0, 0.0)
    return float(np.clip(after / max(hit, 1e-9), 0.0, 1.0))


def _code(
    codec: NeuralCodec, picture: Picture, shown: Picture | None, level: int
) -> tuple[Coded, Picture]:
    """The picture at the level, predicted from `shown` (None: alone), and the reference."""
    height, width = picture.y.shape
    reference = blank(height, width) if shown is None else shown
    vectors = np.zeros((height // BLOCK, width // BLOCK, 2), np.int8)
    predicted = reference
    if shown is not None:
        vectors = estimate(picture, reference)
        predicted = moved(reference, vectors)
    latents = codec.latents(picture, predicted, shown is None)
    units = codec.quantised(latents, level, shown is None)
    return Coded(0, shown is None, level, units, (GROUPS, *latents.shape[1:]), vectors), reference


def _size(codec: NeuralCodec, coded: Coded) -> int:
    return sum(len(packet) for packet in deal(coded, codec.tables))


def _whole(coded: Coded) -> Dealt:
    rows, columns = coded.vectors.shape[:2]
    header = PacketHeader(0, 0, 1, coded.intra, coded.level, 0, (0, 0), 0, rows, columns)
    units = np.ones(len(coded.units), np.bool_)
    return Dealt(header, coded.units, units, coded.vectors, np.ones((rows, columns), np.bool_))


def _lose(dealt: Dealt, share: float, random: np.random.Generator) -> Dealt:
    """Each unit and each vector is lost alone with this likelihood."""
    present = _drawn(dealt.present.shape, share, random)
    return replace(
        dealt,
        units=np.where(present[:, None], dealt.units, 0).astype(np.int32),
        present=present,
        vectors_present=_drawn(dealt.vectors_present.shape, share, random),
    )


def _drawn(shape: tuple[int, ...], share: float, random: np.random.Generator) -> NDArray[np.bool_]:
    return np.asarray(random.random(shape) >= share)
