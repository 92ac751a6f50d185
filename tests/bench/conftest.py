"""Every benchmark once a run, on a tiny model: the tests that look at one share its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdn.bench import BenchOptions, Result, load_bench

SMALLER: dict[str, dict[str, Any]] = {
    "blend": {"only": "quality"},  # its timing is that of the engine's benchmark, eight times
    # their other parts simulate minutes of traffic, or learn from it, whatever the model
    "l4s": {"only": "prediction"},
    "rtc": {"only": "calls"},
}
"""What a tiny model does not make shorter is asked for in part."""


@pytest.fixture(scope="session")
def benched(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Result]:
    """benched(name): the result of `kdn bench name --quick`."""
    found: dict[str, Result] = {}
    options = BenchOptions(
        model=str(tiny_model("llama", max_position_embeddings=32_768)),
        home=tmp_path_factory.mktemp("bench-home"),
        quick=True,
        pairs=1,
        threads=1,
    )

    def once(name: str) -> Result:
        if name not in found:
            own = {"settings": [], **SMALLER.get(name, {})}
            if name in ("serve", "vllm"):  # vLLM's kernels have no heads of 16
                wide = tiny_model("llama", max_position_embeddings=32_768, hidden_size=128)
                own["model"] = str(wide)
            found[name] = load_bench(name)(replace(options, **own))
        return found[name]

    return once
