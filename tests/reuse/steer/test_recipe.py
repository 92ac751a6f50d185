"""Columns that two passes agree on, by hand; recipes as files and in keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdn.core import Cause, Fingerprint
from kdn.errors import BadInput
from kdn.reuse.steer import SteerRecipe, recipe_scales, top_columns

FIRST = torch.tensor([[9.0, 5, 4, 3, 2, 1, 0, 0], [9.0, 0, 0, 1, 2, 3, 4, 5]])
SECOND = torch.tensor([[9.0, 4, 0, 5, 0, 0, 1, 0], [9.0, 5, 4, 3, 2, 1, 0, 0]])
RECIPE = SteerRecipe("model", weight=2.0, share=0.25, sinks=1)
"""Two of eight columns, not counting the first."""


def test_the_tops_of_both_passes_are_intersected_layer_by_layer() -> None:
    assert top_columns([FIRST, SECOND], RECIPE) == ((1,), ())
    with_sinks = replace(RECIPE, sinks=0, share=0.375)
    assert top_columns([FIRST, SECOND], with_sinks) == ((0, 1), (0,)), "three of eight each"


def test_variants_unite_or_take_one_pass_or_leave_layers_out() -> None:
    assert top_columns([FIRST, SECOND], replace(RECIPE, combine="union")) == (
        (1, 2, 3),
        (1, 2, 6, 7),
    )
    assert top_columns([FIRST, SECOND], replace(RECIPE, combine="first")) == ((1, 2), (6, 7))
    assert top_columns([FIRST, SECOND], replace(RECIPE, layers=(1,), combine="first"))[0] == ()
    assert top_columns([FIRST, SECOND], replace(RECIPE, share=0.0)) == ((), ())


def test_scales_count_from_where_the_text_stands() -> None:
    (scale,) = recipe_scales([(1, 3), ()], replace(RECIPE, heads=(2,), literal=True), 20)
    assert (scale.layer, scale.columns, scale.factor, scale.heads) == (0, (21, 23), 2.0, (2,))
    assert scale.literal


def test_equal_recipes_have_one_taint_and_every_setting_changes_it() -> None:
    assert RECIPE.taint == replace(RECIPE).taint
    assert replace(RECIPE, weight=2, share=0.25).taint == RECIPE.taint, "2 is 2.0"
    assert RECIPE.taint.causes == (Cause.STEER,)
    others = [
        replace(RECIPE, weight=3.0),
        replace(RECIPE, share=0.2),
        replace(RECIPE, layers=(0, 1)),
        replace(RECIPE, prompts=("a", "b")),
    ]
    assert len({one.taint for one in [RECIPE, *others]}) == 5


def test_a_recipe_goes_through_a_file() -> None:
    recipe = replace(RECIPE, layers=(1, 2), heads=(0,))
    assert SteerRecipe.decode(recipe.encode(), "r.json") == recipe


@pytest.mark.parametrize("data", [b"", b"[]", b'{"model": 3}', b'{"weight": 2}', b"\xff"])
def test_what_is_no_recipe_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"r\.json is no steering recipe"):
        SteerRecipe.decode(data, "r.json")


@pytest.mark.parametrize(
    "settings",
    [{"weight": 0.0}, {"share": 1.5}, {"sinks": -1}, {"sinks": 1e400}, {"weight": 10**400}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(settings))} is"):
        replace(RECIPE, **settings)  # type: ignore[arg-type]


def test_a_recipe_of_another_model_is_refused_in_one_sentence() -> None:
    RECIPE.check_model(Fingerprint("model"))
    with pytest.raises(BadInput, match="was made for the model model and this one is other"):
        RECIPE.check_model(Fingerprint("other"))
