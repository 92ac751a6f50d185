"""The ways to choose rows that the blending benchmark compares, the impossible ones included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kdn.bench.blend.lab import Case, Lab, true_deviation
from kdn.calibration.key_bias import key_bias_share
from kdn.core import Plan, StoredRun
from kdn.engine import HeldKV
from kdn.errors import BadInput
from kdn.model.attention import Attention, AttentionSlice, BoundAttention, Scaling, TorchAttention
from kdn.model.rope import rotate
from kdn.reuse.blend import (
    AnchoredRows,
    AttendedRows,
    BlendLayout,
    BlendRule,
    Deviation,
    Leading,
    Naive,
    QuestionAttention,
    RandomRows,
)
from kdn.reuse.blend.recomputed_rows import recompute_rows

__all__ = [
    "ATTENTION",
    "FULL",
    "HALF",
    "HKVD",
    "KEY_BIAS",
    "LEAN",
    "NAIVE",
    "NOISE",
    "OURS",
    "PROBES",
    "RANDOM",
    "RATIO",
    "WHOLE",
    "Arm",
    "BottomRight",
    "arms",
    "chosen_arms",
    "default_way",
    "probe_rules",
    "true_mass",
]

RATIO = 0.15
FULL, NAIVE = "full prefill", "naive"
OURS, HKVD, RANDOM = "half the key bias and question's attention", "HKVD by V", "random"
ATTENTION, KEY_BIAS = "question's attention", "key bias alone"
WHOLE = "key bias and question's attention"
HALF = 0.5
"""The share of the key bias that kdn corrects for a model that was never measured."""
MIDDLE = 0.5
"""The layer that was profiled for SmolLM2-135M, which `whole` is the default of: 15 of 30."""
EARLIER = 0.7
"""The layer that was profiled for Qwen2.5-Coder-1.5B: 19 of 28."""
FIRST = "first of each chunk"
ONE_LAYER, ANCHORS = "question's attention at one layer", "question's attention after anchors"
EARLIER_LAYER = "question's attention at one earlier layer"


@dataclass(frozen=True)
class Arm:
    """A way of computing the prompt."""

    name: str
    ratio: float
    rule: BlendRule
    attention: Attention | None = None
    unmoved: bool = False
    """Leave the keys at the positions they were computed at."""
    bias_share: float = 0.0
    """The share of the model's key bias that is added to the stored keys."""

    @property
    def key(self) -> str:
        """Its name among judged rows."""
        return f"{self.name}@{self.ratio}"

    def base(self, lab: Lab, case: Case) -> Plan:
        """The plan that the rule refines."""
        base = lab.base(case, bias_share=self.bias_share)
        return _unmoved(lab, case, base) if self.unmoved else base


LEAN = ("naive", "bias", "random", "hkvd", "attention", "ours")
"""The ways that a claim needs: what is compared with, and what is claimed."""
_RULES: dict[str, tuple[str, BlendRule, float]] = {
    "random": (RANDOM, RandomRows(), 0.0),
    "hkvd": (HKVD, Deviation("v"), 0.0),
    "first": (FIRST, Leading(), 0.0),
    "attention": (ATTENTION, AttendedRows(), 0.0),
    "ours": (OURS, AttendedRows(), HALF),
    "whole": (WHOLE, AttendedRows(), 1.0),
    "layer": (f"half the key bias and {ONE_LAYER}", AnchoredRows(span=1), HALF),
    "earlier-layer": (
        f"half the key bias and {EARLIER_LAYER}",
        AnchoredRows(EARLIER, span=1),
        HALF,
    ),
    "whole-layer": (f"key bias and {ONE_LAYER}", AnchoredRows(MIDDLE, span=1), 1.0),
    "anchors": (f"half the key bias and {ANCHORS}", AnchoredRows(), HALF),
    "whole-anchors": (f"key bias and {ANCHORS}", AnchoredRows(MIDDLE), 1.0),
}
"""By the name on the command line: the title in tables, the rule, and the share of the key bias."""
PROBES = ("layer", "earlier-layer", "anchors", "whole-layer", "whole-anchors")
"""The names of rules that could replace the default."""

NOISE = Arm("all rows again", 1.0, RandomRows())
"""Every row after the first chunk again: what differs is the noise of the arithmetic."""


def default_way(model: str) -> str:
    """What kdn does with that model unless told otherwise."""
    return WHOLE if key_bias_share(model) == 1 else OURS


def probe_rules(model: str) -> dict[str, BlendRule]:
    """The rules that could replace that model's default, by their names on the command line."""
    prefix = "whole-" if default_way(model) == WHOLE else ""
    return {name: _RULES[prefix + name][1] for name in ("layer", "anchors")}


def chosen_arms(names: Sequence[str], ratios: Sequence[float]) -> list[Arm]:
    """The arms of these names at each of these ratios; naive reuse, which recomputes nothing, once.

    Raises BadInput, naming those there are, for an unknown name.
    """
    known = ("naive", "bias", *_RULES)
    for name in names:
        if name not in known:
            raise BadInput(f"no way of blending {name!r} to compare; there are {', '.join(known)}")
    found = [Arm(NAIVE, 0.0, Naive())] if "naive" in names else []
    found += [Arm(KEY_BIAS, 0.0, Naive(), bias_share=1.0)] if "bias" in names else []
    for ratio in ratios:
        for title, rule, share in (_RULES[name] for name in names if name in _RULES):
            found.append(Arm(title, ratio, rule, bias_share=share))
    return found


def arms(lab: Lab, case: Case, which: Literal["main", "noise", "every"]) -> list[Arm]:
    """The arms of a prompt: the main ones, with the noise floor, or all down to the rare ones."""
    main = [
        Arm(NAIVE, 0.0, Naive()),
        Arm(RANDOM, RATIO, RandomRows()),
        Arm(HKVD, RATIO, Deviation("v")),
        Arm(FIRST, RATIO, Leading()),
        Arm(KEY_BIAS, 0.0, Naive(), bias_share=1.0),
        Arm(ATTENTION, RATIO, AttendedRows()),
        Arm(ATTENTION, 0.3, AttendedRows()),
        Arm(OURS, RATIO, AttendedRows(), bias_share=HALF),
        Arm(OURS, 0.3, AttendedRows(), bias_share=HALF),
        Arm(WHOLE, RATIO, AttendedRows(), bias_share=1.0),
    ]
    if which != "every":
        return [*main, NOISE] if which == "noise" else main
    deviation = true_deviation(case, 1).mean(dim=0)
    attended = true_mass(lab, case)
    curve = [
        Arm(name, ratio, rule, bias_share=HALF * (name == OURS))
        for ratio in (0.05, 0.3, 0.5)
        for name, rule in (
            (OURS, AttendedRows()),
            (ATTENTION, AttendedRows()),
            (HKVD, Deviation("v")),
            (RANDOM, RandomRows()),
        )
        if ratio != 0.3 or name not in (OURS, ATTENTION)
    ]
    rare = [
        NOISE,
        Arm("naive, not moved", 0.0, Naive(), unmoved=True),
        Arm("HKVD by K", RATIO, Deviation("k")),
        Arm("HKVD by K and V", RATIO, Deviation("kv")),
        Arm("HKVD by V, gradual", RATIO, Deviation("v", gradual=True)),
        Arm("HKVD by V, released mask", RATIO, Deviation("v"), attention=BottomRight()),
        Arm("question's attention, all layers", RATIO, AttendedRows(skip=0.0)),
        Arm("oracle: V deviation", RATIO, Known(deviation)),
        Arm("oracle: attention", RATIO, Known(attended)),
        Arm("oracle: attention x V deviation", RATIO, Known(attended * deviation)),
    ]
    return main + rare + curve


@dataclass(frozen=True)
class Known:
    """Rows by a worth that is known beforehand, [columns]: how oracles choose."""

    worth: Tensor

    def __call__(self, base: Plan, layout: BlendLayout, count: int) -> Plan:
        best = torch.topk(self.worth[layout.reused], count).indices
        return recompute_rows(base, layout, layout.reused[best])


def true_mass(lab: Lab, case: Case) -> Tensor:
    """What the question attends to in a full prefill."""
    seen = QuestionAttention(case.layout, first=lab.num_layers // 2, every=2)
    lab.run(case, Plan(case.tokens, observers=(seen,)))
    return seen.total


def _unmoved(lab: Lab, case: Case, base: Plan) -> Plan:
    """Keys turned so that moving them puts them back where they were computed: after the prelude."""
    rope, home = lab.model.decoder.rope, case.home
    runs = []
    for run in base.stored:
        assert isinstance(run.source, HeldKV), "the lab holds its chunks in memory"
        kv = run.source.kv.clone()
        shift = torch.full((kv.shape[2],), home - run.start)
        cos, sin = rope.tables(shift)
        for layer in kv[:, 0]:
            layer.copy_(rotate(layer, cos, sin))
        runs.append(StoredRun(run.start, HeldKV(kv)))
    return replace(base, stored=tuple(runs))


class BottomRight(TorchAttention):
    """The mask of the released code: m rows see as if they were the prompt's last m positions."""

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _Misaligned(super().bind(slices, cos, sin), super().bind(_last(slices), cos, sin))


def _last(slices: Sequence[AttentionSlice]) -> list[AttentionSlice]:
    moved = []
    for part in slices:
        stop = int(part.positions[-1]) + 1
        moved.append(replace(part, positions=torch.arange(stop - (part.stop - part.start), stop)))
    return moved


class _Misaligned(BoundAttention):
    """Writes where rows belong, and reads as if they stood at the end."""

    def __init__(self, placing: BoundAttention, reading: BoundAttention) -> None:
        self._placing, self._reading = placing, reading

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._placing.place(layer, q, k, v)

    def attend(
        self,
        layer: int,
        q: Tensor,
        window: int | None,
        scalings: Sequence[Scaling | None] = (),
    ) -> Tensor:
        return self._reading.attend(layer, q, window, scalings)
