"""Hundreds of faults: no wrong answer, nothing acknowledged lost, everything agrees afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.faults import Simulation


@pytest.mark.parametrize("seed", range(12))
def test_the_store_under_faults(tmp_path: Path, seed: int) -> None:
    simulation = Simulation(tmp_path / "kv", seed)
    simulation.run(steps=60)
    assert simulation.reads > 10
    assert simulation.counts.total() > 20, simulation.counts
