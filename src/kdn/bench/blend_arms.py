"""The ways to choose rows that the blending benchmark compares, the impossible ones included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdn.bench.blend_lab import Case, Held, Lab, true_deviation
from kdn.core import Plan, StoredRun
from kdn.model.attention import Attention, AttentionLane, BoundAttention, TorchAttention
from kdn.model.rope import rotate
from kdn.reuse.blend import Asked, Deviation, Drawn, Layout, Leading, Mass, Naive, Rule
from kdn.reuse.blend.rules import chosen_rows

__all__ = [
    "FULL",
    "HKVD",
    "NAIVE",
    "NOISE",
    "OURS",
    "RANDOM",
    "RATIO",
    "Arm",
    "BottomRight",
    "arms",
]

RATIO = 0.15
FULL, NAIVE = "full prefill", "naive"
OURS, HKVD, RANDOM = "question's attention", "HKVD by V", "random"


@dataclass(frozen=True)
class Arm:
    """A way of computing the prompt."""

    name: str
    ratio: float
    rule: Rule
    attention: Attention | None = None
    unmoved: bool = False
    """Leave the keys at the positions they were computed at."""

    def base(self, lab: Lab, case: Case) -> Plan:
        """The plan that the rule refines."""
        base = lab.base(case)
        return _unmoved(lab, case, base) if self.unmoved else base


NOISE = Arm("all rows again", 1.0, Drawn())
"""Every row behind the first chunk anew: what differs is the noise of the arithmetic."""


def arms(lab: Lab, case: Case, which: Literal["main", "noise", "every"]) -> list[Arm]:
    """The arms of a prompt: the main ones, with the noise floor, or all down to the rare ones."""
    main = [
        Arm(NAIVE, 0.0, Naive()),
        Arm(RANDOM, RATIO, Drawn()),
        Arm(HKVD, RATIO, Deviation("v")),
        Arm("first of each chunk", RATIO, Leading()),
        Arm(OURS, RATIO, Asked()),
        Arm(OURS, 0.3, Asked()),
    ]
    if which != "every":
        return [*main, NOISE] if which == "noise" else main
    deviation = true_deviation(case, 1).mean(dim=0)
    attended = _true_mass(lab, case)
    curve = [
        Arm(name, ratio, rule)
        for ratio in (0.05, 0.3, 0.5)
        for name, rule in ((OURS, Asked()), (HKVD, Deviation("v")), (RANDOM, Drawn()))
        if (name, ratio) != (OURS, 0.3)
    ]
    rare = [
        NOISE,
        Arm("naive, not moved", 0.0, Naive(), unmoved=True),
        Arm("HKVD by K", RATIO, Deviation("k")),
        Arm("HKVD by K and V", RATIO, Deviation("kv")),
        Arm("HKVD by V, gradual", RATIO, Deviation("v", gradual=True)),
        Arm("HKVD by V, released mask", RATIO, Deviation("v"), attention=BottomRight()),
        Arm("question's attention, all layers", RATIO, Asked(skip=0.0)),
        Arm("oracle: V deviation", RATIO, Known(deviation)),
        Arm("oracle: attention", RATIO, Known(attended)),
        Arm("oracle: attention x V deviation", RATIO, Known(attended * deviation)),
    ]
    return main + rare + curve


@dataclass(frozen=True)
class Known:
    """Rows by a worth that is known beforehand, [columns]: how oracles choose."""

    worth: Tensor

    def __call__(self, base: Plan, layout: Layout, count: int) -> Plan:
        best = torch.topk(self.worth[layout.reused], count).indices
        return chosen_rows(base, layout, layout.reused[best])


def _true_mass(lab: Lab, case: Case) -> Tensor:
    """What the question attends to in a full prefill."""
    seen = Mass(case.layout, first=lab.num_layers // 2, every=2)
    lab.run(case, Plan(case.tokens, observers=(seen,)))
    return seen.total


def _unmoved(lab: Lab, case: Case, base: Plan) -> Plan:
    """Keys turned so that moving them puts them back where they were computed: behind the prelude."""
    rope, home = lab.model.decoder.rope, case.home
    runs = []
    for run in base.stored:
        assert isinstance(run.source, Held), "the lab holds its chunks in memory"
        kv = run.source.kv.clone()
        shift = torch.full((kv.shape[2],), home - run.start)
        cos, sin = rope.tables(shift)
        for layer in kv[:, 0]:
            layer.copy_(rotate(layer, cos, sin))
        runs.append(StoredRun(run.start, Held(kv)))
    return replace(base, stored=tuple(runs))


class BottomRight(TorchAttention):
    """The mask of the released code: m rows see as if they were the prompt's last m positions."""

    def bind(self, lanes: Sequence[AttentionLane], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _Misaligned(super().bind(lanes, cos, sin), super().bind(_last(lanes), cos, sin))


def _last(lanes: Sequence[AttentionLane]) -> list[AttentionLane]:
    moved = []
    for lane in lanes:
        stop = int(lane.positions[-1]) + 1
        moved.append(replace(lane, positions=torch.arange(stop - lane.num_rows, stop)))
    return moved


class _Misaligned(BoundAttention):
    """Writes where rows belong, and reads as if they stood at the end."""

    def __init__(self, placing: BoundAttention, reading: BoundAttention) -> None:
        self._placing, self._reading = placing, reading

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._placing.place(layer, q, k, v)

    def attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        return self._reading.attend(layer, q, window)
