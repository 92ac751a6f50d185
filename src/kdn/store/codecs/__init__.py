"""How a layer's bytes are written. Lossy codecs taint what they write.

A new codec is one file here and one line of CODECS.
"""

from __future__ import annotations

from kdn.store.codecs.codec import Codec, NoCodec, RunForm
from kdn.store.codecs.coder import Coder, NumpyCoder
from kdn.store.codecs.entropy import Entropy
from kdn.store.codecs.fp8 import Fp8
from kdn.store.codecs.integers import Integers
from kdn.store.codecs.lossless import Lossless
from kdn.store.codecs.native import NativeCoder

__all__ = [
    "CODECS",
    "Codec",
    "Coder",
    "NativeCoder",
    "NoCodec",
    "NumpyCoder",
    "RunForm",
]

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        NoCodec(),
        Lossless(),
        Fp8(),
        Integers(8, key_tokens=256, parameter="<f2"),
        Integers(4, key_tokens=64, parameter="<f2"),
        Entropy(1, step=0.1),
        Entropy(2, step=0.2),
        Entropy(3, step=0.3),
        Entropy(4, step=0.6),
    )
}
"""Every codec by the name that block headers carry; what a name means never changes."""
