"""Steering: rows that answer attend more, or less, to columns of the prompt that are marked.

Trades in factors of columns.  `api` and `bench` import it.  Start reading at `technique.py`."""

from __future__ import annotations

from kdn.reuse.steer.edit import (
    ColumnSums,
    EditedText,
    RunPlan,
    edit_text,
    edited_blocks,
    score_text,
)
from kdn.reuse.steer.folder import RecipeFolder
from kdn.reuse.steer.option import (
    AFTER,
    LOOK_SHARE,
    LOOK_WEIGHT,
    LOOKS,
    Steer,
    recipe_of,
    steer_of,
    steered_from,
)
from kdn.reuse.steer.probe import LookedAt, SentenceProbe
from kdn.reuse.steer.recipe import SteerRecipe, recipe_scales, top_columns
from kdn.reuse.steer.sentences import sentence_positions, sentence_spans
from kdn.reuse.steer.spans import MarkedSpan, column_factors, spans_of
from kdn.reuse.steer.technique import SteerReuse, scales_of

__all__ = [
    "AFTER",
    "LOOKS",
    "LOOK_SHARE",
    "LOOK_WEIGHT",
    "ColumnSums",
    "EditedText",
    "LookedAt",
    "MarkedSpan",
    "RecipeFolder",
    "RunPlan",
    "SentenceProbe",
    "Steer",
    "SteerRecipe",
    "SteerReuse",
    "column_factors",
    "edit_text",
    "edited_blocks",
    "recipe_of",
    "recipe_scales",
    "scales_of",
    "score_text",
    "sentence_positions",
    "sentence_spans",
    "spans_of",
    "steer_of",
    "steered_from",
    "top_columns",
]
