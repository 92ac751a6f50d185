"""One sequence's part in a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import Choose, GivenRows, LayerSource, Plan
from kdn.engine.capture import Capture
from kdn.engine.kv import PrefixKV, SequenceKV
from kdn.model import LoraAdapter

__all__ = ["SequenceSlice"]


@dataclass
class SequenceSlice:
    """One sequence's part in a pass: what it computes and where its KV goes.

    `rows` are the positions alive at the current layer, ascending; `stop` is the position behind the
    last one computed.  `new_head` is filled from the plan's prefix as the pass goes along.
    """

    plan: Plan
    kv: SequenceKV
    rows: Tensor
    token_ids: list[int]
    """The tokens of `rows` at layer 0."""
    stop: int
    logit_positions: tuple[int, ...]
    adapter: LoraAdapter | None = None
    capture: Capture | None = None
    new_head: PrefixKV | None = None
    loads: bool = False
    """True when the plan's sources are read in this pass."""

    @staticmethod
    def prefill(
        plan: Plan,
        kv: SequenceKV,
        first: int,
        stop: int,
        *,
        adapter: LoraAdapter | None = None,
        capture: Capture | None = None,
        new_head: PrefixKV | None = None,
    ) -> SequenceSlice:
        """Positions [first, stop) of a prompt. A long prompt may run as several such ranges."""
        rows = _initial_rows(plan, first, stop)
        wanted = plan.logits if plan.logits is not None else (plan.num_tokens - 1,)
        return SequenceSlice(
            plan=plan,
            kv=kv,
            rows=rows,
            token_ids=[plan.token_ids[p] for p in rows.tolist()],
            stop=stop,
            logit_positions=tuple(p for p in wanted if first <= p < stop),
            adapter=adapter,
            capture=capture,
            new_head=new_head,
            loads=first == plan.num_prefix,
        )

    @staticmethod
    def decode(
        kv: SequenceKV,
        token_id: int,
        *,
        adapter: LoraAdapter | None = None,
        capture: Capture | None = None,
    ) -> SequenceSlice:
        """One more token behind everything the sequence has."""
        at = kv.num_columns
        return SequenceSlice(
            plan=_NEXT_TOKEN,
            kv=kv,
            rows=torch.tensor([at]),
            token_ids=[token_id],
            stop=at + 1,
            logit_positions=(at,),
            adapter=adapter,
            capture=capture,
        )

    def sources(self) -> list[LayerSource]:
        """Everything that is loaded during the pass."""
        if not self.loads:
            return []
        stored = [run.source for run in self.plan.stored]
        if self.new_head is not None and self.plan.prefix is not None:
            stored.insert(0, self.plan.prefix)
        return stored


_NEXT_TOKEN = Plan(token_ids=())


def _initial_rows(plan: Plan, first: int, stop: int) -> Tensor:
    """Positions computed at layer 0: given ones, or all in range that no stored run covers."""
    rule = plan.rule(0)
    if isinstance(rule, GivenRows):
        return torch.tensor([p for p in rule.positions if first <= p < stop], dtype=torch.int64)
    if isinstance(rule, Choose) or not plan.stored:
        return torch.arange(first, stop)
    wanted = torch.ones(stop - first, dtype=torch.bool)
    for run in plan.stored:
        wanted[max(run.start - first, 0) : max(run.stop - first, 0)] = False
    return torch.nonzero(wanted).flatten() + first
