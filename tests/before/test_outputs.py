"""Greedy tokens are those that the code of aea6709 gave; probabilities are within rounding of them.

In fp32 (tiny random models) 0.001 nats covers other kernels and other processors.  Its weights in int8 were
recorded again when their scale came to stand for 32 inputs and not for all of an output.  SmolLM2 was
recorded in bfloat16, whose rounding differs between kernels: what was recorded lies up to 0.2 nats from what
fp32 gives, and so do the kernels of today, on the other side for some tokens.  So 0.25 nats in fp32 and 0.4
in bfloat16, and tokens that lead by as much.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.before import cases
from tests.before.compare import alike

HERE = Path(__file__).parent


def recorded(model: str) -> Any:
    return json.loads((HERE / "outputs.json").read_text("utf-8"))[model]


def test_the_tiny_model_answers_as_before(
    tmp_path: Path, before_tiny: Path, before_lora: Path, before_home: Path
) -> None:
    found = cases.tiny_outputs(before_tiny, before_lora, before_home, tmp_path)
    alike(found, recorded("tiny"), 0.001)


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.25), ("bfloat16", 0.4)])
def test_smollm2_answers_as_before(
    tmp_path: Path, smollm2: Path, before_home: Path, dtype: str, tolerance: float
) -> None:
    found = cases.smollm2_outputs(before_home, tmp_path, dtype)
    alike(found, recorded("smollm2"), tolerance)
