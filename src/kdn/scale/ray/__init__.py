"""Batches on Ray: rows of a table through engines on many machines, one engine an actor."""

from __future__ import annotations

from kdn.scale.ray.jobs import BatchJob, LabelBatch, PrefillBatch, RerankBatch
from kdn.scale.ray.run import BatchResult, BatchSettings, run_batch

__all__ = [
    "BatchJob",
    "BatchResult",
    "BatchSettings",
    "LabelBatch",
    "PrefillBatch",
    "RerankBatch",
    "run_batch",
]
