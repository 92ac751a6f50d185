"""Blending: stored text is reused wherever it stands, and the rows that matter are mended."""

from __future__ import annotations

from kdn.reuse.blend.asking import AskedRows, Mass
from kdn.reuse.blend.chunks import Chunk, StoredDocuments
from kdn.reuse.blend.controller import RatioController, TimedLoader
from kdn.reuse.blend.drift import BiasCorrected, Drift
from kdn.reuse.blend.guard import GuardStat, QualityGuard, divergence
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.planner import BLENDED, BlendReuse
from kdn.reuse.blend.rules import Deviation, Leading, Naive, RandomRows, Rule

__all__ = [
    "BLENDED",
    "AskedRows",
    "BiasCorrected",
    "BlendLayout",
    "BlendReuse",
    "Chunk",
    "Deviation",
    "Drift",
    "GuardStat",
    "Leading",
    "Mass",
    "Naive",
    "QualityGuard",
    "RandomRows",
    "RatioController",
    "Rule",
    "StoredDocuments",
    "TimedLoader",
    "divergence",
]
