"""Passes over one model, in a line: what the tests of the executor are written with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from kdn.core import LayerKV, LayerView, Plan, TokenIds
from kdn.engine import Capture, Pass, PrefixKV, SequenceKV, SequenceSlice, SuffixKV
from kdn.errors import CorruptBlock
from kdn.model import LoadedModel, LoraAdapter, load_model
from kdn.model.attention import Attention, TorchAttention
from kdn.model.kernels import Kernels


def load_tiny(
    folder: Path, cache: Path, dtype: str = "float32", kernels: Kernels | None = None
) -> LoadedModel:
    """A tiny model on the CPU."""
    return load_model(
        folder, cache_dir=cache, dtype=dtype, device="cpu", find_kernels=lambda: kernels
    )


def some_tokens(num_tokens: int, vocab_size: int, seed: int = 0) -> TokenIds:
    """Random ids that are no control tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, vocab_size, (num_tokens,), generator=generator).tolist())


@dataclass
class HeldSource:
    """A layer source over KV in memory: [layers, 2, tokens, kv heads, dim]."""

    kv: Tensor
    name: str = "held"
    started: list[int] = field(default_factory=list)
    closed: int = 0

    @property
    def num_tokens(self) -> int:
        return self.kv.shape[2]

    def start(self, layer: int) -> None:
        self.started.append(layer)

    def take(self, layer: int) -> tuple[LayerKV, ...]:
        """In two runs, where there are two tokens to be had."""
        assert layer in self.started, "the executor asks before it takes"
        k, v = self.kv[layer]
        half = self.num_tokens // 2
        cuts = [slice(0, half), slice(half, None)] if half else [slice(None)]
        return tuple(LayerKV(k[cut], v[cut]) for cut in cuts)

    def close(self) -> None:
        self.closed += 1


class Failing(HeldSource):
    """A source whose second layer is damaged."""

    def take(self, layer: int) -> tuple[LayerKV, ...]:
        if layer == 1:
            raise CorruptBlock("layer 1 is not what was written")
        return super().take(layer)


@dataclass
class Ran:
    """What a pass left behind."""

    logits: Tensor
    kv: SequenceKV
    captured: Tensor


def shape_of(model: LoadedModel):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return model.decoder.config.kv_shape(str(model.decoder.dtype).removeprefix("torch."))


def new_kv(model: LoadedModel, num_tokens: int, prefix: PrefixKV | None = None) -> SequenceKV:
    suffix = SuffixKV(shape_of(model), model.decoder.dtype, "cpu", num_tokens)
    return SequenceKV(suffix, prefix, prefix.num_columns if prefix else 0)


@torch.inference_mode()
def run(
    model: LoadedModel,
    plan: Plan,
    *,
    attention: Attention | None = None,
    cuts: Sequence[int] = (),
    adapter: LoraAdapter | None = None,
) -> Ran:
    """A plan from start to end, as several passes if `cuts` are given. Captures all it computes."""
    attention = attention or TorchAttention()
    shape, dtype = shape_of(model), model.decoder.dtype
    prefix = None
    if plan.prefix is not None:
        prefix = PrefixKV("prefix", plan.num_prefix, shape, dtype, "cpu")
    kv = new_kv(model, plan.num_tokens - plan.num_prefix, prefix)
    capture = Capture(shape, dtype, 0, plan.num_tokens)
    edges = [plan.num_prefix, *cuts, plan.num_tokens]
    logits = torch.empty(0)
    for first, stop in pairwise(edges):
        new_prefix = prefix if first == plan.num_prefix else None
        part = SequenceSlice.prefill(
            plan, kv, first, stop, adapter=adapter, capture=capture, new_prefix=new_prefix
        )
        step = Pass(model.decoder, attention, [part])
        while not step.advance():
            pass
        logits = step.logits()[0]
    start = plan.num_prefix
    tokens = plan.token_ids
    if plan.then is not None:
        return _go_on(model, plan.then(), kv, attention)
    return Ran(logits, kv, capture.retained(tokens, start).kv)


def _go_on(model: LoadedModel, plan: Plan, kv: SequenceKV, attention: Attention) -> Ran:
    """The plan that waited for a look, over the columns that the look left."""
    part = SequenceSlice.prefill(plan, kv, plan.num_prefix, plan.num_tokens)
    step = Pass(model.decoder, attention, [part])
    while not step.advance():
        pass
    return Ran(step.logits()[0], kv, torch.empty(0))


@torch.inference_mode()
def decode(
    model: LoadedModel, pairs: Sequence[tuple[SequenceKV, int]], attention: Attention | None = None
) -> list[Tensor]:
    """One token for each sequence, in one pass."""
    slices = [SequenceSlice.decode(kv, [token]) for kv, token in pairs]
    step = Pass(model.decoder, attention or TorchAttention(), slices)
    while not step.advance():
        pass
    return step.logits()


@dataclass
class Watcher:
    """An observer that keeps the input of every layer."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, view: LayerView) -> None:
        self.hidden[view.layer] = view.hidden.clone()
        self.rows[view.layer] = view.rows.clone()
