"""Pictures as planes: 4:2:0 luma and chroma, and how far one picture is from another.

A neural network sees a picture as six channels at half the size: the four luma samples of each
2 x 2 square, and the two chroma samples that belong to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput

__all__ = [
    "BLOCK",
    "Picture",
    "blank",
    "is_new_scene",
    "packed",
    "padded",
    "psnr_db",
    "ssim",
    "ssim_db",
    "unpacked",
]

BLOCK = 16
"""Sides of a coded picture are multiples of this many luma samples."""

Plane = NDArray[np.uint8]

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_WINDOW = 8
_BEST_SSIM = 1.0 - 1e-5
_NEW_SCENE = 8.0
"""Levels of luma, of 255, below which a prediction's mean error is no new scene's."""


class Picture(NamedTuple):
    """`y` is [height, width]; `u` and `v` are [height / 2, width / 2]."""

    y: Plane
    u: Plane
    v: Plane


def blank(height: int, width: int) -> Picture:
    """A grey picture: what is predicted from when there is nothing to predict from."""
    half = np.full((height // 2, width // 2), 128, np.uint8)
    return Picture(np.full((height, width), 128, np.uint8), half, half.copy())


def is_new_scene(picture: Picture, predicted: Picture) -> bool:
    """Is the luma further from its prediction than from the mean of each of its own blocks?

    Sides are multiples of `BLOCK`.
    """
    y = picture.y.astype(np.float32)
    height, width = y.shape
    blocks = y.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    alone = np.abs(blocks - blocks.mean(axis=(1, 3), keepdims=True)).mean()
    return bool(np.abs(y - predicted.y).mean() > max(alone, _NEW_SCENE))


def padded(picture: Picture) -> Picture:
    """The picture with its last rows and columns repeated up to multiples of `BLOCK`.

    Raises BadInput for a picture that is smaller than one block or has odd sides.
    """
    height, width = picture.y.shape
    if height < BLOCK or width < BLOCK or height % 2 or width % 2:
        raise BadInput(
            f"a picture of {width} x {height}: both sides must be even and at least {BLOCK}; "
            "scale the video first"
        )
    down, right = -height % BLOCK, -width % BLOCK
    if not down and not right:
        return picture
    y = np.pad(picture.y, ((0, down), (0, right)), mode="edge")
    halves = ((0, down // 2), (0, right // 2))
    return Picture(y, *(np.pad(p, halves, mode="edge") for p in (picture.u, picture.v)))


def packed(picture: Picture) -> NDArray[np.float32]:
    """Six channels in [-0.5, 0.5], [6, height / 2, width / 2]."""
    y = picture.y
    planes = (y[::2, ::2], y[::2, 1::2], y[1::2, ::2], y[1::2, 1::2], picture.u, picture.v)
    return (np.stack(planes).astype(np.float32) - 127.5) / 255.0


def unpacked(channels: NDArray[np.float32]) -> Picture:
    """The inverse of `packed`, rounded and clipped to bytes."""
    bytes_ = np.clip(np.rint(channels * 255.0 + 127.5), 0, 255).astype(np.uint8)
    height, width = bytes_.shape[1] * 2, bytes_.shape[2] * 2
    y = np.empty((height, width), np.uint8)
    y[::2, ::2], y[::2, 1::2], y[1::2, ::2], y[1::2, 1::2] = bytes_[:4]
    return Picture(y, bytes_[4], bytes_[5])


def psnr_db(shown: Picture, original: Picture) -> float:
    """Peak signal-to-noise ratio of luma; 60 where the pictures are nearly or wholly equal."""
    height, width = original.y.shape
    error = shown.y[:height, :width].astype(np.float64) - original.y
    mean = max(float(np.mean(error**2)), 1e-9)
    return float(min(10.0 * np.log10(255.0**2 / mean), 60.0))


def ssim(shown: Picture, original: Picture) -> float:
    """Structural similarity of luma (Wang et al. 2004), mean over 8 x 8 windows."""
    height, width = original.y.shape
    a, b = shown.y[:height, :width].astype(np.float64), original.y.astype(np.float64)
    mean_a, mean_b = _means(a), _means(b)
    var_a, var_b = _means(a * a) - mean_a**2, _means(b * b) - mean_b**2
    both = _means(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))))


def ssim_db(value: float) -> float:
    """Structural similarity on a decibel scale: -10 log10(1 - SSIM), at most 50."""
    return float(-10.0 * np.log10(1.0 - min(value, _BEST_SSIM)))


def _means(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over every 8 x 8 window, by a summed-area table."""
    table = np.pad(plane.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    w = _WINDOW
    sums = table[w:, w:] - table[:-w, w:] - table[w:, :-w] + table[:-w, :-w]
    return np.asarray(sums / (w * w))
