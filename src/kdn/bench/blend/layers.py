"""Which layer and which anchors choose the rows best? The profile behind `AnchoredRows`.

It runs on the second half of the prompts, so that the first half may judge what was chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdn import api
from kdn.bench.blend.arms import RATIO, true_mass
from kdn.bench.blend.lab import Case, Lab, kl
from kdn.bench.blend.prompts import BlendPrompt
from kdn.bench.blend.quality import case_of
from kdn.bench.common.kept import add_kept, read_kept
from kdn.bench.common.result import Row
from kdn.bench.common.scores import geometric
from kdn.core import GivenRows, Plan
from kdn.reuse.blend import AttendedRows, BlendRule, one_layer
from kdn.reuse.blend.anchors import AnchorKind

__all__ = ["PROFILED", "layer_rows", "profile", "profiled_before"]

PROFILED = 6
"""Prompts that are enough to tell layers apart."""
_LOOK = "the probe pass over all, upper half"
_FIRST, _STEP = 1 / 4, 2
"""The first layer tried, as a share of the layers, and the distance to the next."""

Profiled = dict[str, Any]
"""One prompt: `name`, and by way `kl`, `kl32` and `mass`."""


@dataclass(frozen=True)
class Way:
    """One rule under the profile's name for it."""

    name: str
    rule: BlendRule


def _ways(num_layers: int) -> list[Way]:
    """The present look, and every kind of anchor at every layer tried; span 1 shows all tokens."""
    layers = range(int(_FIRST * num_layers), num_layers - 1, _STEP)
    kinds: tuple[tuple[AnchorKind, int], ...] = (
        ("low norm", 1),
        ("low norm", 32),
        ("spread", 32),
        ("leading", 32),
    )
    found = [Way(_LOOK, AttendedRows())]
    for layer in layers:
        for kind, span in kinds:
            name = "all tokens" if span == 1 else f"{kind}, one in {span}"
            rule = one_layer(layer, num_layers, span, kind)
            found.append(Way(f"{name}@{layer}", rule))
    return found


def profiled_before(rows: Path | None) -> dict[str, Profiled]:
    """What the file holds, by the names of prompts. Raises BadInput for another file."""
    known: dict[str, Profiled] = {}
    read_kept(rows, lambda one: known.update({one["name"]: one | {"ways": dict(one["ways"])}}))
    return known


def profile(
    service: api.Kdn,
    lab: Lab,
    asked: Sequence[BlendPrompt],
    known: dict[str, Profiled],
    rows: Path | None,
    say: Callable[[str], None],
    *,
    bias_share: float,
) -> list[Profiled]:
    """Every way on every prompt, those in `known` as they stand there; others go into the file `rows`."""
    for question in asked:
        if question.name in known:
            continue
        say(f"layers: {question.name}")
        case = case_of(service, lab, question)
        truth = true_mass(lab, case)[case.layout.reused]
        ways = {
            way.name: _score(lab, case, way, truth, bias_share) for way in _ways(lab.num_layers)
        }
        known[question.name] = {"name": question.name, "ways": ways}
        add_kept(rows, known[question.name])
    return [known[question.name] for question in asked]


def _score(lab: Lab, case: Case, way: Way, truth: Tensor, bias_share: float) -> dict[str, float]:
    """KL from the full prefill, and how much of the attention there is to catch its rows catch."""
    count = case.layout.budget(RATIO)
    chosen: list[Tensor] = []

    def noted(plan: Plan) -> Plan:
        then = plan.then
        assert then is not None, "every way asks the question first"

        def follow() -> Plan:
            after = then()
            first = after.rows[0]
            assert isinstance(first, GivenRows), "the rows are known after the probe pass"
            chosen.append(torch.isin(case.layout.reused, torch.tensor(first.positions)))
            return after

        return replace(plan, then=follow)

    with torch.inference_mode():
        plan = way.rule(lab.base(case, bias_share=bias_share), case.layout, count)
    far = kl(case.full.logprobs, lab.run(case, noted(plan)).logprobs)
    best = torch.topk(truth, count).values.sum()
    return {
        "kl": round(float(far[0]), 6),
        "kl32": round(float(far[1:].mean()), 6),
        "mass": round(float(truth[chosen[0]].sum() / best), 4),
    }


def layer_rows(found: Sequence[Profiled], look: str = _LOOK) -> list[Row]:
    """A line for each way: how many times closer than the present look, and the attention caught."""
    rows: list[Row] = []
    for way in found[0]["ways"] if found else ():
        name, _, layer = way.partition("@")
        own = [one["ways"][way] for one in found]
        looks = [one["ways"][look] for one in found]
        row: Row = {"way": name, "layer": int(layer) if layer else None, "prompts": len(own)}
        row["attention caught"] = sum(one["mass"] for one in own) / len(own)
        for key, title in (("kl", "closer than the look"), ("kl32", "closer, 32")):
            pairs = [(a[key], b[key]) for a, b in zip(looks, own, strict=True)]
            mean, low, high = geometric(pairs)
            row[title] = mean
            row[f"{title}, interval"] = f"{low:.2f}-{high:.2f}"
        rows.append(row)
    return rows
