"""The engine benchmark end to end, on a model so small that only the form counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.bench import BenchOptions
from kdn.bench.engine.engine import EngineScale, measure
from kdn.bench.engine.lineup import REFERENCE, VLLM

SCALE = EngineScale(
    pairs={96: 1, 160: 1},
    batches=(1, 2),
    decode_tokens=16,
    decode_pairs=1,
    decode_context=40,
    rivals=(REFERENCE, VLLM),
    warm=False,
    quantized_contexts=(),
)


def test_every_question_is_answered_and_the_absent_is_named(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    options = BenchOptions(
        model=str(tiny_model("llama", max_position_embeddings=512)),
        home=tmp_path / "home",
        rivals=tmp_path / "no-rivals",
        threads=torch.get_num_threads(),
    )
    result = measure(options, SCALE, tmp_path)
    cold = {row["tokens"]: row for row in result.rows if row["measure"] == "first token, ms"}
    assert set(cold) == {96, 160}
    for row in cold.values():
        assert {"kdn", "kdn hit", REFERENCE, "speedup", "spread"} <= set(row)
    decoding = [row for row in result.rows if row["measure"] == "decoding, tokens/s"]
    assert [row["batch"] for row in decoding] == [1, 2]
    assert {"floor", "share of the floor"} <= set(decoding[0])
    floors = [row for row in result.rows if row["measure"] == "floor of a first token, ms"]
    assert [row["tokens"] for row in floors] == [96, 160]
    assert all(
        0 < float(row["kdn resident hit"] or 0) <= float(row["kdn hit"] or 0) for row in floors
    )
    assert result.summary["floor_share_decode"] is not None
    assert (result.summary["busy_slowdown"] or 0) > 0
    assert (result.summary["lookup_decoding_speedup"] or 0) > 0
    assert result.summary["decode_speedup"] is not None
    assert result.summary["ttft_speedup_vllm_2048"] is None
    assert result.notes == ("vllm is absent: no-rivals is not there; `make rivals` builds it",)
    assert result.dtype in ("bfloat16", "float32"), "what it computed in names the page"
