"""Batches on Ray: rows of a table through engines on many machines, one engine an actor."""

from __future__ import annotations

from kdn.scale.ray.jobs import BatchJob, LabelBatch, PrefillBatch, RerankBatch, RowResult
from kdn.scale.ray.journal import BatchJournal
from kdn.scale.ray.run import BatchResult, BatchSettings, check_batch, run_batch

__all__ = [
    "BatchJob",
    "BatchJournal",
    "BatchResult",
    "BatchSettings",
    "LabelBatch",
    "PrefillBatch",
    "RerankBatch",
    "RowResult",
    "check_batch",
    "run_batch",
]
