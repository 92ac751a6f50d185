"""What storing KV costs and saves, in money.

Trades in times, bytes and prices; no tensors, no store.  `reuse` and the rooms above may import it.
Start reading at `model.py`, which prices one request, then `units.py`.
"""

from __future__ import annotations

from kdn.cost.advise import Advice, advise, break_even_per_hour, keep_for
from kdn.cost.hiding import Hiding, cheapest_hiding, hidings
from kdn.cost.jct import (
    GRID,
    PACKED,
    JctSample,
    count_jct,
    fit_jct,
    jct_file,
    load_jct,
    save_jct,
)
from kdn.cost.ledger import Ledger, block_saving, compute_ledger, use_saving
from kdn.cost.model import Workload, bill, exact_ratio, published_ratio
from kdn.cost.place import Placing
from kdn.cost.plan import MOST_GPUS, FleetPlan, plan_fleet
from kdn.cost.sheet import PriceSheet, TierPrice, load_sheet
from kdn.cost.speed import PairJct, Speed, load_speed
from kdn.cost.trace import TraceBill, price_trace
from kdn.cost.units import (
    BytesPerSecond,
    PerByteHour,
    PerHour,
    Seconds,
    SizeBytes,
    Usd,
)

__all__ = [
    "GRID",
    "MOST_GPUS",
    "PACKED",
    "Advice",
    "BytesPerSecond",
    "FleetPlan",
    "Hiding",
    "JctSample",
    "Ledger",
    "PairJct",
    "PerByteHour",
    "PerHour",
    "Placing",
    "PriceSheet",
    "Seconds",
    "SizeBytes",
    "Speed",
    "TierPrice",
    "TraceBill",
    "Usd",
    "Workload",
    "advise",
    "bill",
    "block_saving",
    "break_even_per_hour",
    "cheapest_hiding",
    "compute_ledger",
    "count_jct",
    "exact_ratio",
    "fit_jct",
    "hidings",
    "jct_file",
    "keep_for",
    "load_jct",
    "load_sheet",
    "load_speed",
    "plan_fleet",
    "price_trace",
    "published_ratio",
    "save_jct",
    "use_saving",
]
