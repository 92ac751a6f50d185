"""Rows that the question attends to at one layer, after it has seen only a few anchors of each chunk.

QCFuse (2606.05875): below the profiled layer the instruction and the question attend to the exact
prefix, to themselves and to the anchors; at that layer their queries meet every stored key.  The
probe pass ends there.  `kdn bench blend --only layers` measures which layer to take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdn.core import ColumnScale, Plan
from kdn.errors import BadInput
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.question_attention import NOTHING, AttendedRows

__all__ = ["AnchorKind", "AnchoredRows", "anchor_positions", "one_layer", "unseen_scales"]

AnchorKind = Literal["low norm", "spread", "leading"]


@dataclass(frozen=True)
class AnchoredRows:
    """The rows that the question attends to most at one layer; before it, it sees anchors alone.

    With `span` 1 every token is an anchor, and the rows are those of `AttendedRows` observing that
    layer alone.  Raises BadInput for a depth outside 0 to 1 and for a span below 1.
    """

    depth: float = 0.85
    """The observed layer, as a share of the layers: layer 20 of 24 was best for Qwen2.5-Coder-0.5B."""
    span: int = 32
    """One anchor in so many tokens of a chunk, rounded up."""
    kind: AnchorKind = "low norm"
    """Which tokens.  Stored KV holds no queries, so the attention that a token drew is not known; a key of
    small norm is what stands for it (2406.11430)."""

    def __post_init__(self) -> None:
        if not 0 <= self.depth < 1:
            raise BadInput(
                f"the observed layer's depth is {self.depth}; give a share from 0 to below 1"
            )
        if self.span < 1:
            raise BadInput(f"one anchor in {self.span} tokens; give a span of at least 1")

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        num_layers = len(base.rows)
        probe = AttendedRows(self.depth, num_layers)(base, layout, count)
        if probe.then is None or self.span == 1:
            return probe
        layer = int(self.depth * num_layers)
        anchors = anchor_positions(base, layout, layer, self.span, self.kind)
        scales = unseen_scales(layout, anchors, range(layer))
        return replace(probe, scale=(*probe.scale, *scales))


def one_layer(
    layer: int, num_layers: int, span: int = 1, kind: AnchorKind = "low norm"
) -> AnchoredRows:
    """The rule that observes this layer alone, from 0; with `span` 1 the question sees all tokens."""
    return AnchoredRows((layer + 0.5) / num_layers, span, kind)


def unseen_scales(layout: BlendLayout, anchors: Tensor, layers: range) -> tuple[ColumnScale, ...]:
    """Masks every reused column that is no anchor, at those layers."""
    unseen = layout.reused[~torch.isin(layout.reused, anchors)]
    columns = tuple(unseen.tolist())
    return tuple(ColumnScale(layer, columns, NOTHING) for layer in layers)


def anchor_positions(
    base: Plan, layout: BlendLayout, layer: int, span: int, kind: AnchorKind
) -> Tensor:
    """[anchors] int64: one reused position in `span`, chunk by chunk.

    Norms are those of the chunk's stored keys at `layer`: position does not change them, so a stored
    chunk has the same anchors in every prompt.  Waits for that layer of every chunk.
    """
    norms = _norms(base, layer) if kind == "low norm" else {}
    found = []
    for start, stop in layout.chunks:
        size = stop - start
        count = -(-size // span)
        if kind == "spread":
            chosen = torch.arange(count) * size // count
        elif kind == "leading":
            chosen = torch.arange(count)
        else:
            chosen = torch.topk(norms[start], count, largest=False).indices
        found.append(start + chosen)
    return torch.cat(found)


def _norms(base: Plan, layer: int) -> dict[int, Tensor]:
    """By chunk start, [tokens] fp32: length of its keys at the layer, averaged over heads."""
    for run in base.stored:
        run.source.start(layer)
    return {
        run.start: torch.cat(
            [part.k.float().norm(dim=2).mean(dim=1) for part in run.source.take(layer)]
        ).cpu()
        for run in base.stored
    }
