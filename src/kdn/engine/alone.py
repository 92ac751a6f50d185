"""One plan without a step loop: what measurements and benchmarks run between or beside requests."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import LayerKV, Plan
from kdn.engine.batch import SequenceSlice
from kdn.engine.executor import Pass
from kdn.engine.kv import Capture, PrefixKV, SequenceKV, SuffixKV, kv_shape
from kdn.model import LoadedModel, LoraAdapter
from kdn.model.attention import Attention

__all__ = ["AloneRun", "HeldKV", "run_alone", "steps_alone"]


@dataclass(frozen=True)
class HeldKV:
    """A layer source over KV in memory: [layers, 2, tokens, kv heads, dim], K without position."""

    kv: Tensor
    name: str = "held"

    @property
    def num_tokens(self) -> int:
        return self.kv.shape[2]

    def start(self, layer: int) -> None:
        return None

    def take(self, layer: int) -> tuple[LayerKV]:
        return (LayerKV(self.kv[layer, 0], self.kv[layer, 1]),)

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class AloneRun:
    """What a plan leaves behind when it ran alone."""

    logits: Tensor
    """fp32 [wanted positions, vocabulary or allowed tokens]."""
    kv: SequenceKV
    captured: Tensor | None
    """[layers, 2, tokens, kv heads, dim] of the positions after the plan's prefix, K without position."""
    num_rows: int
    """Rows computed, summed over layers."""


def run_alone(
    model: LoadedModel,
    attention: Attention,
    plan: Plan,
    *,
    capture: bool = False,
    spare_columns: int = 0,
    adapter: LoraAdapter | None = None,
) -> AloneRun:
    """The plan from start to end, in one pass; a probe pass is followed by its second plan.

    With `capture` its KV comes back as it would be stored.  `spare_columns` leaves memory for tokens that
    are decoded later.  Raises CorruptBlock when a source fails.
    """
    steps = steps_alone(
        model, attention, plan, capture=capture, spare_columns=spare_columns, adapter=adapter
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            done: AloneRun = end.value
            return done


def steps_alone(
    model: LoadedModel,
    attention: Attention,
    plan: Plan,
    *,
    capture: bool = False,
    spare_columns: int = 0,
    adapter: LoraAdapter | None = None,
) -> Generator[None, None, AloneRun]:
    """As `run_alone`, with a pause after every layer, so that the driver may let others go first."""
    decoder, first = model.decoder, plan.num_prefix
    shape = kv_shape(model)
    device, size = str(decoder.device), plan.num_tokens - first + spare_columns
    num_rows = 0
    with torch.inference_mode():
        prefix = None
        if plan.prefix is not None:
            prefix = PrefixKV(plan.prefix.name, first, shape, decoder.dtype, device)
        kv = SequenceKV(SuffixKV(shape, decoder.dtype, device, size), prefix, first)
        noted = Capture(shape, decoder.dtype, first, size) if capture else None
    while True:
        with torch.inference_mode():
            unfilled = prefix if prefix is not None and not prefix.is_complete else None
            one = SequenceSlice.prefill(
                plan,
                kv,
                first,
                plan.num_tokens,
                adapter=adapter,
                capture=noted,
                new_prefix=unfilled,
            )
            step = Pass(decoder, attention, [one])
        done = False
        while not done:
            with torch.inference_mode():
                done = step.advance()
            num_rows += step.num_rows
            if not done:
                yield
        if plan.then is None:
            break
        plan = plan.then()
    with torch.inference_mode():
        captured = noted.retained(plan.token_ids, first).kv if noted is not None else None
        return AloneRun(step.logits()[0], kv, captured, num_rows)
