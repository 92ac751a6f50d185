"""The stack benchmark on the real model: reuse shows, and changes no token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdn.bench import BenchOptions, load_bench


@pytest.mark.model
@pytest.mark.slow
def test_no_answer_changes_by_a_token(smollm2: Path, model_cache: Path) -> None:
    options = BenchOptions(
        model=str(smollm2), home=model_cache, pairs=1, threads=torch.get_num_threads()
    )
    result = load_bench("stack")(options)
    assert result.summary["changed_share"] == 0
    assert (result.summary["reused_share"] or 0) > 0.9
    sources = {row["way"]: row["from"] for row in result.rows}
    assert sources["kept in memory"] == "memory"
    assert sources["from disk after a restart"] == "disk"
