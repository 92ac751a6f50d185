"""The part of a chunk's error that all chunks share: a constant shift of its keys, layer by layer.

A document that is computed directly after the prelude attends to the prelude and itself alone.  Its
keys then differ from those that it has after other documents, and a third to two thirds of that
difference (squared) is one and the same vector for every token of a layer and head, whatever the
text.  It makes stored columns attract more or less attention than computed ones.  Adding the vector
costs nothing: it is done where keys are rotated to their place.  Values share little of their
error, so they stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdn.core import LayerKV, LayerSource
from kdn.reuse.changed import ChangedSource

__all__ = ["KeyBias"]


@dataclass(frozen=True)
class KeyBias:
    """The mean change of a text's keys when it stands after other texts."""

    shift: Tensor
    """[layers, kv heads, dim] fp32, for keys without rotary position."""

    @cached_property
    def rounded(self) -> Tensor:
        """The shift in bf16, as it is added to stored keys of that type."""
        return self.shift.to(torch.bfloat16)

    def times(self, share: float) -> KeyBias:
        """A part of it, 0 to 1."""
        return KeyBias(self.shift * share)

    def corrected(self, layer: int, kv: LayerKV) -> LayerKV:
        """The layer's KV as it would be after other texts; keys are shifted where they are placed."""
        shift = self.rounded if kv.k.dtype == torch.bfloat16 else self.shift
        return LayerKV(kv.k, kv.v, shift[layer].to(kv.k.device, kv.k.dtype))

    def over(self, source: LayerSource) -> ChangedSource:
        """The source, whose keys were computed after the prelude, corrected for standing elsewhere."""
        return ChangedSource(
            source,
            "key bias corrected",
            lambda layer, parts: [self.corrected(layer, part) for part in parts],
        )
