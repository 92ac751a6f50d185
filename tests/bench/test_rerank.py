"""The reranking benchmark: agreement by hand, and every row on a tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdn.bench import Result
from kdn.bench.rank.rerank import agreement

EVERY_KEY = {
    "memory_speedup", "bound_share", "disk_speedup", "direct_speedup", "redis_speedup",
    "int8_speedup", "int8_agreement_share", "vllm_apc_speedup", "crossencoder_speedup",
    "query_100_ms", "break_even_gb_per_s", "score_diff",
}  # fmt: skip


def test_agreement_is_a_share_of_pairs() -> None:
    """Of three pairs one is turned round."""
    assert agreement((3.0, 2.0, 1.0), (2.0, 3.0, 1.0)) == pytest.approx(2 / 3)
    assert agreement((3.0, 2.0), (30.0, 20.0)) == 1.0


@pytest.mark.slow
def test_every_side_has_its_row(benched: Callable[[str], Result]) -> None:
    found = benched("rerank")
    assert set(found.summary) == EVERY_KEY
    assert found.summary["vllm_apc_speedup"] is None
    assert found.summary["redis_speedup"] is None
    assert (found.summary["score_diff"] or 0.0) < 1e-4
    tiers = {row["side"]: row["from"] for row in found.rows}
    assert tiers["ours, memory"] == "memory"
    assert tiers["ours, disk"] == tiers["ours, disk, O_DIRECT"] == "disk"
    assert not tiers["document first, all computed"]
    assert any("left out by --quick" in note for note in found.notes)
