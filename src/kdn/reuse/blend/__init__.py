"""Blending: stored documents are reused anywhere, and the rows that matter are recomputed.

Trades in plans over stored chunks.  `calibration`, `api` and `bench` import it.  Start reading at
`planner.py`."""

from __future__ import annotations

from kdn.reuse.blend.anchors import AnchoredRows, one_layer
from kdn.reuse.blend.controller import RatioController, TimedLoader
from kdn.reuse.blend.guard import QualityGuard, divergence
from kdn.reuse.blend.key_bias import KeyBias
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.planner import BlendReuse
from kdn.reuse.blend.question_attention import AttendedRows, QuestionAttention
from kdn.reuse.blend.recomputed_rows import BlendRule, Deviation, Leading, Naive, RandomRows

__all__ = [
    "AnchoredRows",
    "AttendedRows",
    "BlendLayout",
    "BlendReuse",
    "BlendRule",
    "Deviation",
    "KeyBias",
    "Leading",
    "Naive",
    "QualityGuard",
    "QuestionAttention",
    "RandomRows",
    "RatioController",
    "TimedLoader",
    "divergence",
    "one_layer",
]
