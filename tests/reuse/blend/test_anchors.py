"""Anchors: with every token an anchor they choose as a look at that layer does, and few cost no row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from kdn.core import GivenRows, LayerView, Plan, StoredRun
from kdn.errors import BadInput
from kdn.model import LoadedModel
from kdn.reuse.blend import AnchoredRows, AttendedRows, BlendLayout, BlendRule, one_layer
from kdn.reuse.blend.anchors import AnchorKind, anchor_positions
from tests.engine.runs import HeldSource, load_tiny, run
from tests.reuse.blend.test_recomputed_rows import Blended, three_chunks


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    """Six layers: the fourth can be observed after three that see anchors alone."""
    return load_tiny(tiny_model("llama", num_hidden_layers=6), model_cache)


def chosen_rows(case: Blended, rule: BlendRule) -> tuple[int, ...]:
    """The rows that the rule recomputes at a quarter, after its probe pass."""
    probe = case.plan(rule, 0.25)
    run(case.model, replace(probe, then=None))
    assert probe.then is not None, "these rules ask the question first"
    first = probe.then().rows[0]
    assert isinstance(first, GivenRows)
    return first.positions


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
@pytest.mark.parametrize("missing", [(), (2,)], ids=["all stored", "one to compute"])
def test_with_every_token_an_anchor_the_rows_are_those_of_a_look_at_that_layer(
    layer: int, missing: tuple[int, ...], tiny: LoadedModel
) -> None:
    """The twin observes all layers in a whole probe pass, and takes the one layer's sums out of it."""
    case = three_chunks(tiny)
    case.missing = missing
    seen: dict[int, Tensor] = {}

    def watch(view: LayerView) -> None:
        asking = torch.nonzero(view.rows >= case.layout().asking).flatten()
        seen[view.layer] = view.attend(asking, torch.arange(case.layout().num_tokens))

    whole = case.plan(AttendedRows(skip=0.0, every=1), 0.25)
    run(tiny, replace(whole, rows=(whole.rows[0], *case.base().rows[1:]), observers=(watch,)))
    reused = case.layout().reused
    best = torch.topk(seen[layer][reused], case.layout().budget(0.25)).indices
    for kind in get_args(AnchorKind):
        rows = chosen_rows(case, one_layer(layer, 6, kind=kind))
        assert rows == case.layout().with_forced(reused[best])


def test_what_no_anchor_holds_does_not_reach_the_rows_before_the_layer(tiny: LoadedModel) -> None:
    """Below the observed layer other values of the unseen columns change nothing; those of an anchor do."""
    case = three_chunks(tiny)
    layout, layer = case.layout(), 3
    rule = one_layer(layer, 6, 20, "leading")  # two anchors for each chunk of 40
    assert anchor_positions(case.base(), layout, layer, 20, "leading").tolist() == [50, 51, 90, 91]

    def asked(changed: int) -> Tensor:
        """The question's input of the observed layer, where one stored column is another."""
        runs = []
        for one in case.base().stored:
            assert isinstance(one.source, HeldSource)
            kv = one.source.kv.clone()
            if one.start <= changed < one.stop:
                kv[:, :, changed - one.start] += 1.0
            runs.append(StoredRun(one.start, HeldSource(kv)))
        found: list[Tensor] = []

        def watch(view: LayerView) -> None:
            if view.layer == layer:
                found.append(view.hidden.clone())

        plan = rule(replace(case.base(), stored=tuple(runs)), layout, 20)
        run(tiny, replace(plan, observers=(watch,), then=None))
        return found[0]

    plain = asked(-1)
    assert torch.equal(asked(52), plain)
    assert torch.equal(asked(129), plain)
    assert not torch.equal(asked(51), plain)


def test_anchors_are_taken_from_every_chunk_by_their_kind() -> None:
    """Ten keys of one head whose norms are 10 .. 1, then five of 1 .. 5; one anchor in four."""
    falling = torch.arange(10, 0, -1.0).view(1, 1, 10, 1, 1).expand(1, 2, 10, 1, 1)
    rising = torch.arange(1, 6.0).view(1, 1, 5, 1, 1).expand(1, 2, 5, 1, 1)
    runs = (StoredRun(2, HeldSource(falling)), StoredRun(14, HeldSource(rising)))
    base, layout = Plan((0,) * 20, stored=runs), BlendLayout(20, 2, ((2, 12), (14, 19)), 19)
    found = {
        kind: sorted(anchor_positions(base, layout, 0, 4, kind).tolist())
        for kind in get_args(AnchorKind)
    }
    assert found == {
        "low norm": [9, 10, 11, 14, 15],
        "leading": [2, 3, 4, 14, 15],
        "spread": [2, 5, 8, 14, 16],
    }


def test_a_layer_is_named_by_its_number_in_models_of_any_depth() -> None:
    """A depth that is a number over the layers falls short of some: 29 / 50 * 50 is 28.999."""
    assert int(29 / 50 * 50) == 28
    for num_layers in (1, 24, 28, 30, 50):
        found = [int(one_layer(n, num_layers).depth * num_layers) for n in range(num_layers)]
        assert found == list(range(num_layers))


def test_settings_that_cannot_be_are_refused_in_a_sentence() -> None:
    with pytest.raises(BadInput, match=r"depth is 1; give a share from 0 to below 1"):
        AnchoredRows(depth=1)
    with pytest.raises(BadInput, match="one anchor in 0 tokens; give a span of at least 1"):
        AnchoredRows(span=0)
