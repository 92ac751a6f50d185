"""Techniques: how a request and what is stored become a plan.

Trades in plans.  `calibration`, `api` and what stands above them import it; the engine never does.
Start reading at `stack.py`.
"""

from __future__ import annotations

from kdn.reuse.prefix import LossRule, PrefixReuse, lossy_recipe
from kdn.reuse.recording import RecordLookups
from kdn.reuse.source import StoreSource
from kdn.reuse.stack import Stack
from kdn.reuse.technique import Technique

__all__ = [
    "LossRule",
    "PrefixReuse",
    "RecordLookups",
    "Stack",
    "StoreSource",
    "Technique",
    "lossy_recipe",
]
