"""The classical rival: H.264 by PyAV (x264, no delay, one intra picture), with repair packets.

A picture's packets are protected by as many repair packets as `spare` says; any loss within that number
is repaired (as by an ideal code), any beyond it loses the picture and all that are predicted from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scripts.rtc.measure import WARM

from kdn.errors import MissingExtra
from kdn.net.rtc.clips import Clip, as_frame, from_frame
from kdn.net.rtc.codec.network import LEVELS
from kdn.net.rtc.codec.picture import psnr_db, ssim
from kdn.net.rtc.tables import LOSSES, RateTable

__all__ = ["QUALITIES", "h264_table"]

QUALITIES = (45, 41, 37, 34, 31, 28, 25, 22)
"""x264's constant rate factor of every level."""

assert len(QUALITIES) == LEVELS


def h264_table(clip: Clip, spare: float = 0.3, codec: str = "libx264") -> RateTable:
    """The clip at every level, each coded as one unbroken stream. Raises MissingExtra without PyAV."""
    before = clip.pictures[WARM:0:-1]  # as a call plays them before it comes back to the first
    played = replace(clip, pictures=(*before, *clip.pictures))
    runs = [_coded(played, quality, codec) for quality in QUALITIES]
    num, levels = len(clip.pictures), len(runs)
    every = np.array([run[0] for run in runs]).T
    intra = np.repeat(every[:1], num, axis=0)  # the first picture's cost stands for every intra one
    sizes = every[len(before) :]
    quality = np.array([run[1] for run in runs]).T[len(before) :, :, None]
    decibels = np.array([run[2] for run in runs]).T[len(before) :, :, None]
    shape = (num, levels, len(LOSSES))
    return RateTable(
        clip.name,
        f"h264+fec{spare:.0%}".replace("%", ""),
        clip.fps,
        np.maximum.accumulate(sizes, axis=1),
        np.maximum.accumulate(intra, axis=1),
        np.broadcast_to(quality, shape).copy(),
        np.broadcast_to(decibels, shape).copy(),
        survives=False,
        spare=spare,
    )


def _coded(clip: Clip, quality: int, codec: str) -> tuple[list[int], list[float], list[float]]:
    """Bytes, SSIM and PSNR of every picture."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("H.264 comes with PyAV: pip install 'kdn[rtc]'") from error
    height, width = clip.pictures[0].y.shape
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate = round(clip.fps)
    encoder.options = {
        "crf": str(quality),
        "preset": "medium",
        "tune": "zerolatency",
        "x264-params": "keyint=infinite:scenecut=0:log-level=none",
    }
    decoder: Any = av.CodecContext.create("h264", "r")
    sizes: list[int] = []
    shown = []
    for picture in clip.pictures:
        packets = encoder.encode(as_frame(picture))
        sizes.append(sum(packet.size for packet in packets))
        shown += [from_frame(f) for packet in packets for f in decoder.decode(packet)]
    shown += [from_frame(f) for f in decoder.decode(None)]
    pairs = list(zip(shown, clip.pictures, strict=True))
    return sizes, [ssim(a, b) for a, b in pairs], [psnr_db(a, b) for a, b in pairs]
