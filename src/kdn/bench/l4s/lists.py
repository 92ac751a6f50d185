"""Whole lists of scenarios in a row each: what a policy takes off, and what others pay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdn.bench.common.result import Row

__all__ = ["cuts", "list_rows", "median_cut"]


def median_cut(
    rows: Sequence[Mapping[str, Any]], policy: str, field: str, listed: str = "frozen"
) -> float | None:
    """Median over a list: the fraction that `policy` takes off all-L's `field`."""
    found = cuts(rows, policy, field, listed)
    return float(np.median(found)) if found else None


def cuts(
    rows: Sequence[Mapping[str, Any]],
    policy: str,
    field: str,
    listed: str,
    share: str | None = None,
) -> list[float]:
    """The fraction by scenario; `share` picks one weight of the classic queue."""
    own = [r for r in rows if r.get("list") == listed and share in {None, r["weight"]}]
    base = {_place_of(row): row[field] for row in own if row["policy"] == "all-L"}
    return [
        1.0 - row[field] / max(base[_place_of(row)], 1e-9) for row in own if row["policy"] == policy
    ]


def list_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """A row for each list, share and policy but all-L, which they are compared with."""
    ran = dict.fromkeys(
        (r["list"], r["weight"], r["policy"]) for r in rows if r.get("part") == "policy"
    )
    for listed, share, policy in ran:
        if policy == "all-L":
            continue
        p99 = cuts(rows, policy, "p99_ms", listed, share)
        own = cuts(rows, policy, "goodput_mbps", listed, share)
        others = cuts(rows, policy, "others_mbps", listed, share)
        harm = [-cut for cut in cuts(rows, policy, "others_p99_ms", listed, share)]
        yield {
            "part": "whole lists, against all-L",
            "list": listed,
            "classic share": share,
            "policy": policy,
            "scenarios": len(p99),
            "P99 cut, median": float(np.median(p99)),
            "P99 cut, geometric": 1.0 - float(np.exp(np.mean(np.log1p([-cut for cut in p99])))),
            "best": max(p99),
            "worst": min(p99),
            "goodput lost, worst": max(own),
            "others' goodput lost, worst": max(others),
            "others' P99 rise, median": float(np.median(harm)),
            "worst rise": max(harm),
            "rises over 2 %": sum(rise > 0.02 for rise in harm),
        }


def _place_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["scenario"], row["weight"]
