"""Sharing: a model reuses the KV that a sibling of it has computed for the same context.

Start reading at `technique.py`; `plans.py` has the ways to share, `pairs.py` what was measured of them.
"""

from __future__ import annotations

from kdn.reuse.share.guard import ShareGuard
from kdn.reuse.share.limits import shared_recipe
from kdn.reuse.share.linear_map import LinearMap, MapFit
from kdn.reuse.share.pairs import PairRecord, ShareRecords
from kdn.reuse.share.plans import ShareChoice
from kdn.reuse.share.technique import ShareReuse, Sibling

__all__ = [
    "LinearMap",
    "MapFit",
    "PairRecord",
    "ShareChoice",
    "ShareGuard",
    "ShareRecords",
    "ShareReuse",
    "Sibling",
    "shared_recipe",
]
