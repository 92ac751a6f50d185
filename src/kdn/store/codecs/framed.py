"""What all compressing codecs share: one byte says whether a run is packed or had to stay plain.

A run stays plain when packing does not make it smaller, or cannot represent it (a lossy codec and
values that are not finite).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import Codec, RunForm

__all__ = ["FRAME_BYTES", "FramedCodec"]

FRAME_BYTES = 16
"""Kind, then zeros, so that what follows is aligned for 128-bit loads."""
_PLAIN, _PACKED = 0, 1


class FramedCodec(Codec):
    """A codec that only has to say how it packs and unpacks."""

    def encode(self, run: memoryview, form: RunForm) -> memoryview:
        packed = self._pack(run, form)
        if packed is None or len(packed) >= run.nbytes:
            return memoryview(_frame(_PLAIN) + run)
        return memoryview(_frame(_PACKED) + packed)

    def decode(self, stored: memoryview, form: RunForm) -> memoryview:
        frame, body = stored[:FRAME_BYTES], stored[FRAME_BYTES:]
        if bytes(frame) == _frame(_PLAIN) and body.nbytes == form.run_bytes:
            return body
        if bytes(frame) != _frame(_PACKED):
            raise CorruptBlock(f"a run of codec {self.name} begins with an impossible frame")
        try:
            with np.errstate(all="ignore"):  # of damaged scales; the values are checked
                run = self._unpack(body, form)
        except (ValueError, OverflowError) as error:  # numpy's, when lengths do not fit
            raise CorruptBlock(f"a run of codec {self.name} cannot be unpacked: {error}") from error
        if run.nbytes != form.run_bytes:
            raise CorruptBlock(
                f"a run of {form.run_bytes} bytes was unpacked as {run.nbytes} by {self.name}"
            )
        return run

    @abstractmethod
    def _pack(self, run: memoryview, form: RunForm) -> bytes | None:
        """The packed form, or None when this run has none."""

    @abstractmethod
    def _unpack(self, packed: memoryview, form: RunForm) -> memoryview:
        """The run. Raises CorruptBlock or ValueError when `packed` cannot give it."""


def _frame(kind: int) -> bytes:
    return bytes((kind,)).ljust(FRAME_BYTES, b"\0")
