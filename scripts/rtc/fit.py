"""Measure the coder's tables: how large the latents of each class are, and how often each class occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdn.net.rtc.clips import Clip
from kdn.net.rtc.codec.entropy import SCALES
from kdn.net.rtc.codec.motion import estimate, moved
from kdn.net.rtc.codec.network import GROUPS, LATENTS, LEVELS, CodecNetwork
from kdn.net.rtc.codec.neural import NeuralCodec
from kdn.net.rtc.codec.packets import CLASSES, MIXES, CodecTables, classes_of
from kdn.net.rtc.codec.picture import Picture, blank, padded

__all__ = ["fit_tables"]

_PER_GROUP = LATENTS // GROUPS


def fit_tables(network: CodecNetwork, clips: Sequence[Clip], every: int = 6) -> NeuralCodec:
    """The network with tables that fit its latents on the clips, every so many pictures of them."""
    flat = CodecTables(
        np.zeros((2, CLASSES, GROUPS, _PER_GROUP), np.uint8), np.full((2, MIXES, CLASSES), 1.0)
    )
    codec = NeuralCodec(network, flat)
    halves = []
    for intra in (False, True):
        seen = [units for clip in clips for units in _samples(codec, clip, every, intra)]
        halves.append((_scales(seen), _mixes(seen)))
    scales = np.stack([scales for scales, _ in halves])
    return NeuralCodec(network, CodecTables(scales, np.stack([mixes for _, mixes in halves])))


def _samples(codec: NeuralCodec, clip: Clip, every: int, intra: bool) -> list[NDArray[np.int32]]:
    """The units of pictures at every level; inter pictures are predicted from their predecessor."""
    found = []
    for i in range(1, len(clip.pictures), every):
        picture, before = padded(clip.pictures[i]), padded(clip.pictures[i - 1])
        if intra:
            predicted: Picture = blank(*picture.y.shape)
        else:
            predicted = moved(before, estimate(picture, before))
        latents = codec.latents(picture, predicted, intra)
        found += [codec.quantised(latents, level, intra) for level in range(LEVELS)]
    return found


def _scales(seen: list[NDArray[np.int32]]) -> NDArray[np.uint8]:
    """The nearest scale to the mean magnitude, by class, group and channel."""
    total = np.zeros((CLASSES, GROUPS, _PER_GROUP))
    count = np.full((CLASSES, GROUPS, 1), 1e-9)
    for units in seen:
        classes = classes_of(units).reshape(GROUPS, -1)
        size = np.abs(units).reshape(GROUPS, -1, _PER_GROUP)
        for group in range(GROUPS):
            for one in range(CLASSES):
                rows = size[group, classes[group] == one]
                total[one, group] += rows.sum(0)
                count[one, group] += len(rows)
    mean = np.maximum(total / count, SCALES[0])
    nearest = np.abs(np.log(mean)[..., None] - np.log(SCALES)).argmin(-1)
    return np.asarray(nearest, np.uint8)


def _mixes(seen: list[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Class likelihoods of pictures sorted from still to busy, in MIXES parts of equal number."""
    counts = np.array([np.bincount(classes_of(u), minlength=CLASSES) for u in seen], np.float64)
    share = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
    order = np.argsort(share @ np.arange(CLASSES))
    parts = np.array_split(share[order], MIXES)
    return np.array([np.maximum(part.mean(0), 1e-4) for part in parts])
