"""What an open model consists of, built and joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdn.api.cost import Costs
from kdn.api.prompts import Prompts
from kdn.api.score import Scoring
from kdn.calibration.idle import EndedRequests, Idle
from kdn.calibration.of_model import ModelCalibration
from kdn.clock import Clock
from kdn.config import Config
from kdn.core import Planner
from kdn.engine import Engine
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.reuse import PrefixReuse
from kdn.reuse.blend import BlendReuse, QualityGuard
from kdn.reuse.source import MeasuredSpeeds
from kdn.reuse.why import Explainer
from kdn.store import Store
from kdn.trace import Trace

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """The rooms of one open model. Made by `kdn.api.build` only, which says how they are joined."""

    name: str
    """What the model is called by callers."""
    config: Config
    clock: Clock
    trace: Trace
    model: LoadedModel
    attention: Attention
    store: Store
    prompts: Prompts
    calibration: ModelCalibration
    planner: Planner
    prefix: PrefixReuse
    """Says what is stored of a prompt's beginning, too."""
    blend: BlendReuse
    guard: QualityGuard
    speeds: MeasuredSpeeds
    engine: Engine
    ended: EndedRequests
    idle: Idle
    scoring: Scoring
    cost: Costs
    why: Explainer
    """Says why a prompt was not reused further."""
    closers: tuple[Callable[[], None], ...]
    """What ends the parts, in this order."""
