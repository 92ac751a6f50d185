"""Settings of one-token jobs, each seen to change what the engine does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kdn
from kdn.config import load_config
from kdn.engine import JobMemory
from kdn.errors import BadConfig


def opened(folder: Path, home: Path, **settings: str) -> kdn.Kdn:
    environ = {f"KDN_ENGINE_{name.upper()}": value for name, value in settings.items()}
    return kdn.open(folder, config=load_config(environ, home=home))


def test_fewer_rows_at_a_time_take_less_memory(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    found: list[JobMemory] = []
    for rows in ("64", "512"):
        with opened(folder, tmp_path / rows, row_chunk=rows) as k:
            found.append(k.engine.memory)
    assert found[0].fixed_bytes * 8 == found[1].fixed_bytes


def test_the_policy_and_the_packing_are_the_configured_ones(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The verdicts are the same under every policy; only the order may differ."""
    folder = tiny_model("llama", max_position_embeddings=4096)
    texts = [f"text {number} " * (number + 1) for number in range(6)]
    shares = []
    for policy in ("fcfs", "calibrated"):
        with opened(folder, tmp_path / policy, policy=policy, pack_tokens="64") as k:
            assert k.calibration.jct.source == "flops"
            shares.append([v.probabilities for v in k.score("which?", texts)])
            k.check()
    assert shares[0] == [pytest.approx(one, abs=1e-2) for one in shares[1]]
    with pytest.raises(BadConfig):
        load_config({"KDN_ENGINE_POLICY": "fastest"}, home=tmp_path)
