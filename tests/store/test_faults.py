"""Hundreds of faults: no wrong answer, nothing acknowledged lost, everything agrees afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.faults import Simulation


@pytest.mark.parametrize("seed", range(12))
def test_the_store_under_faults(tmp_path: Path, seed: int) -> None:
    simulation = Simulation(tmp_path / "kv", seed)
    simulation.run(steps=60)
    assert simulation.reads > 5
    assert simulation.counts.total() > 10, simulation.counts


def test_a_seed_replays_a_life(tmp_path: Path) -> None:
    lives = [Simulation(tmp_path / name, 3) for name in ("one", "two")]
    for life in lives:
        life.run(steps=20)
    assert lives[0].counts == lives[1].counts
    assert lives[0].reads == lives[1].reads
