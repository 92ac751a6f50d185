"""Blending: stored text is reused wherever it stands, and the rows that matter are mended."""

from __future__ import annotations

from kdn.reuse.blend.asking import Asked, Mass
from kdn.reuse.blend.chunks import Chunk, Shelf
from kdn.reuse.blend.controller import Controller, Stopwatch
from kdn.reuse.blend.drift import Drift, Undrifted
from kdn.reuse.blend.guard import Guard, GuardStat, divergence
from kdn.reuse.blend.layout import Layout
from kdn.reuse.blend.planner import BLENDED, BlendReuse
from kdn.reuse.blend.rules import Deviation, Drawn, Leading, Naive, Rule

__all__ = [
    "BLENDED",
    "Asked",
    "BlendReuse",
    "Chunk",
    "Controller",
    "Deviation",
    "Drawn",
    "Drift",
    "Guard",
    "GuardStat",
    "Layout",
    "Leading",
    "Mass",
    "Naive",
    "Rule",
    "Shelf",
    "Stopwatch",
    "Undrifted",
    "divergence",
]
