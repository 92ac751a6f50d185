"""METIS: every question gets its own configuration, chosen with what the machine can hold now.

    question ─> profiler ─> prune ─> space ─┐
    chunks found ─> what is stored of them ─┼─> choose ─> synthesize ─> answer, its sources, its reasons
    engine ─> free memory, work ahead ──────┘

After METIS (arXiv 2412.10543 v3).  Start reading at `configuration.py`, then `prune.py` and `choose.py`.
"""

from kdn.rag.metis.calls import QueryCalls, Show
from kdn.rag.metis.choose import (
    ChosenConfiguration,
    EngineLoad,
    Preference,
    best_fit,
    choose,
    preference_of,
)
from kdn.rag.metis.classifier import ClassifierProfiler
from kdn.rag.metis.configuration import (
    GOLDEN,
    MAX_CHUNKS,
    ConfigurationSpace,
    Method,
    RagConfiguration,
    method_of,
)
from kdn.rag.metis.demand import ChunkState, DemandModel
from kdn.rag.metis.feedback import FeedbackSchedule, LearningProfiler, ProfileExample
from kdn.rag.metis.level import AnswerLevel, answer_level
from kdn.rag.metis.model_profile import (
    EndpointProfileModel,
    ModelProfiler,
    SpokenToken,
)
from kdn.rag.metis.observed import Observed, RunningQueries, row_seconds
from kdn.rag.metis.profile import (
    LibraryNote,
    OracleProfiler,
    Profiler,
    QuestionProfile,
    RuleProfiler,
)
from kdn.rag.metis.prune import RecentSpaces, prune
from kdn.rag.metis.report import QueryReport
from kdn.rag.metis.synthesis import Synthesis, best_passage, synthesize

__all__ = [
    "GOLDEN",
    "MAX_CHUNKS",
    "AnswerLevel",
    "ChosenConfiguration",
    "ChunkState",
    "ClassifierProfiler",
    "ConfigurationSpace",
    "DemandModel",
    "EndpointProfileModel",
    "EngineLoad",
    "FeedbackSchedule",
    "LearningProfiler",
    "LibraryNote",
    "Method",
    "ModelProfiler",
    "Observed",
    "OracleProfiler",
    "Preference",
    "ProfileExample",
    "Profiler",
    "QueryCalls",
    "QueryReport",
    "QuestionProfile",
    "RagConfiguration",
    "RecentSpaces",
    "RuleProfiler",
    "RunningQueries",
    "Show",
    "SpokenToken",
    "Synthesis",
    "answer_level",
    "best_fit",
    "best_passage",
    "choose",
    "method_of",
    "preference_of",
    "prune",
    "row_seconds",
    "synthesize",
]
