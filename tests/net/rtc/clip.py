"""Small clips that several tests share."""

from __future__ import annotations

from functools import cache

from kdn.net.rtc.clips import Clip, generated
from kdn.net.rtc.codec.neural import NeuralCodec, load_codec

__all__ = ["codec", "moving"]


@cache
def moving(num: int = 8) -> Clip:
    """Discs before a texture, 96 x 128."""
    return generated(7, num, 96, 128)


@cache
def codec(masked: bool = True) -> NeuralCodec:
    """The packaged codec or its twin."""
    return load_codec(masked)
