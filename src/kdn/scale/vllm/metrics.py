"""The connector's counters in vLLM's own statistics, log and /metrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from kdn.scale.counts import METRICS

__all__ = ["KdnConnectorStats", "KdnVllmMetrics"]


class KdnConnectorStats(KVConnectorStats):  # type: ignore[misc]
    """Counters of `METRICS`, by name."""

    def reset(self) -> None:
        """Forget everything."""
        self.data: dict[str, int] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """The sums of both."""
        total = Counter(self.data)
        total.update(other.data)
        self.data = dict(total)
        return self

    def reduce(self) -> dict[str, int | float]:
        """What vLLM's log shows of an interval."""
        return dict(self.data)

    def is_empty(self) -> bool:
        """Did nothing happen?"""
        return not self.data


class KdnVllmMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """`vllm:kdn_*_total`, one counter for each of `METRICS`."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(
                name=f"vllm:kdn_{name}", documentation=text, labelnames=labelnames
            )
            for name, text in METRICS.items()
        }
        for counter in self._counters.values():
            for labels in per_engine_labelvalues.values():
                counter.labels(*labels)  # so that what never happened reads 0

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add an interval's counters to those of an engine."""
        labels = self.per_engine_labelvalues[engine_idx]
        for name, count in transfer_stats_data.items():
            self._counters[name].labels(*labels).inc(count)
