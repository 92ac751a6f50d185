"""The seam "how are a layer's bytes written", and its dull twin, which writes them as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kdn.core import KvShape
from kdn.errors import CorruptBlock

__all__ = ["Codec", "NoCodec", "RunForm"]


@dataclass(frozen=True)
class RunForm:
    """What a run is a run of: K [num_tokens, kv heads, head dim], then V, at one layer."""

    shape: KvShape
    layer: int
    num_tokens: int

    @property
    def run_bytes(self) -> int:
        """Length of the run once decoded."""
        return self.num_tokens * self.shape.layer_token_bytes

    @property
    def num_channels(self) -> int:
        """Values of one token's K (or V)."""
        return self.shape.num_kv_heads * self.shape.head_dim


class Codec(ABC):
    """Turns one layer run into the bytes that are stored, and back. Stateless; safe from threads.

    Every layer of every block decodes alone.  A codec with `lossless` false may only write blocks
    whose recipe names `Cause.CODEC`.
    """

    name: str
    lossless: bool
    compresses: bool = True
    """False when the stored bytes are the run itself, so that a reader needs no copy of them."""

    @abstractmethod
    def encode(self, run: memoryview, form: RunForm) -> memoryview:
        """The bytes to store for `run`."""

    @abstractmethod
    def decode(self, stored: memoryview, form: RunForm) -> memoryview:
        """The run, exactly `form.run_bytes` long. Raises CorruptBlock when `stored` cannot give that.

        Allocates no more than a small multiple of `form.run_bytes`, whatever `stored` says.
        """


class NoCodec(Codec):
    """Stores the bytes as they are; reading copies nothing."""

    name = "none"
    lossless = True
    compresses = False

    def encode(self, run: memoryview, form: RunForm) -> memoryview:
        return run

    def decode(self, stored: memoryview, form: RunForm) -> memoryview:
        if stored.nbytes != form.run_bytes:
            raise CorruptBlock(
                f"a plain run of {form.run_bytes} bytes was stored as {stored.nbytes}"
            )
        return stored
