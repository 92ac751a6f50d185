"""What is learned of a model on the half that settings are chosen on: retrieval heads, directions of keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kdn.bench.steer.items import SteerItem
from kdn.bench.steer.lab import SteerContext, SteerLab
from kdn.core import LayerView, Plan

__all__ = ["Heads", "SteerFit"]

Heads = dict[int, tuple[int, ...]]
"""By layer, some of its query heads."""
_HEADS = 0.1
"""The share of all heads that are taken for retrieval heads."""
_DIRECTIONS = 0.25
"""The share of a head's dimensions that directions of relevance are."""


@dataclass
class _AnswerProbe:
    """Observer: of the attention to documents that rows pay, the share that goes to some columns, by head."""

    first_row: int
    wanted: Tensor
    documents: Tensor

    def __post_init__(self) -> None:
        self.share: dict[int, Tensor] = {}

    def __call__(self, view: LayerView) -> None:
        rows = torch.nonzero(view.rows >= self.first_row).flatten()
        found, whole = (
            view.attend.by_head(rows, columns).sum(dim=1).cpu()
            for columns in (self.wanted, self.documents)
        )
        self.share[view.layer] = found / whole.clamp_min(1e-9)


class SteerFit:
    """Learned when it is first asked for, on given items; what it costs is not counted to any context."""

    def __init__(self, lab: SteerLab, items: Sequence[SteerItem]) -> None:
        self._lab = lab
        self._items = tuple(items)

    @cached_property
    def heads(self) -> Heads:
        """Retrieval heads (2404.15574): those that look at the answer's sentence while it is answered."""
        total: dict[int, Tensor] = {}
        with self._lab.aside():
            for item in self._items:
                for layer, share in self._looked(item).items():
                    total[layer] = total.get(layer, torch.zeros_like(share)) + share
        layers = sorted(total)
        table = torch.stack([total[layer] for layer in layers])
        count = max(round(_HEADS * table.numel()), 1)
        top = sorted(torch.topk(table.flatten(), count).indices.tolist())
        found: dict[int, list[int]] = {}
        for place in top:
            found.setdefault(layers[place // table.shape[1]], []).append(place % table.shape[1])
        return {layer: tuple(heads) for layer, heads in found.items()}

    @cached_property
    def directions(self) -> Tensor:
        """[layers, kv heads, dim, dim] projections on the directions in which keys of the answer's
        sentence move when its own question stands before it, less when another one does.

        After SEKA (2603.01281), which edits keys along spectral directions of relevance; how they are
        found here is ours.
        """
        moved: list[Tensor] = []
        others = (*self._items[1:], *self._items[:1])
        with self._lab.aside():
            for item, other in zip(self._items, others, strict=True):
                own, foreign = (self._keys(item, one.question) for one in (item, other))
                size = min(own.shape[1], foreign.shape[1])
                moved.append(own[:, :size] - foreign[:, :size])
        by_head = torch.cat(moved, dim=1).transpose(1, 2)  # [layers, kv heads, tokens, dim]
        _, _, vectors = torch.linalg.svd(by_head, full_matrices=False)
        kept = vectors[..., : max(round(_DIRECTIONS * by_head.shape[-1]), 1), :]
        found: Tensor = kept.transpose(-1, -2) @ kept
        return found

    def _looked(self, item: SteerItem) -> dict[int, Tensor]:
        lab, context, prompt = self._lab, self._lab.make_context(item), self._lab.prompt(item)
        answer = lab.service.model.tokenizer.encode(item.answers[0])
        probe = _AnswerProbe(
            prompt.num_tokens - 1,
            torch.tensor(_columns(item, context)),
            torch.tensor(list(context.columns)),
        )
        whole = (*prompt.token_ids, *answer)
        lab.run(Plan(whole, prefix=context.held, observers=(probe,), logits=()))
        return probe.share

    def _keys(self, item: SteerItem, question: str) -> Tensor:
        """fp32 [layers, tokens, kv heads, dim] of the answer's sentence with a question before it."""
        spans = tuple((document + 1, start, stop) for document, start, stop in item.spans)
        asked = replace(item, documents=(question, *item.documents), spans=spans)
        context = self._lab.make_context(asked)
        return context.held.kv[:, 0, _columns(asked, context)].float()


def _columns(item: SteerItem, context: SteerContext) -> list[int]:
    """Those of the answer's sentences."""
    return sorted(
        {
            position
            for document, start, stop in item.spans
            for position, _ in context.places[document].shares(start, stop)
        }
    )
