"""How a layer's bytes are written: the seam between blocks and their encoded form."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdn.errors import CorruptBlock

__all__ = ["CODECS", "Codec", "NoCodec"]


class Codec(ABC):
    """Turns one layer run into the bytes that are stored, and back.

    A codec with `lossless` false may only write blocks whose recipe names `Cause.CODEC`.
    """

    name: str
    lossless: bool

    @abstractmethod
    def encode(self, run: memoryview) -> memoryview:
        """The bytes to store for `run`."""
        ...

    @abstractmethod
    def decode(self, stored: memoryview, run_bytes: int) -> memoryview:
        """The run, exactly `run_bytes` long. Raises CorruptBlock when `stored` cannot give that."""
        ...


class NoCodec(Codec):
    """Stores the bytes as they are; reading copies nothing."""

    name = "none"
    lossless = True

    def encode(self, run: memoryview) -> memoryview:
        return run

    def decode(self, stored: memoryview, run_bytes: int) -> memoryview:
        if stored.nbytes != run_bytes:
            raise CorruptBlock(f"a plain run of {run_bytes} bytes was stored as {stored.nbytes}")
        return stored


CODECS: dict[str, Codec] = {"none": NoCodec()}
