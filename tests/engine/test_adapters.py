"""An adapter that begins within a prompt: rows before it are the base model's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.core import Plan
from kdn.model import LoadedModel, load_model
from tests.engine.runs import HeldSource, run, some_tokens
from tests.engine.test_company import write_adapter

TOKENS = some_tokens(200, 200, seed=2)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    model_cache: Path,
) -> LoadedModel:
    modules = ("q_proj", "v_proj", "gate_proj", "down_proj")
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "one", 1, modules)
    return load_model(
        tiny_model("llama"),
        cache_dir=model_cache,
        dtype=request.param,
        device="cpu",
        adapters={"one": adapter},
    )


@pytest.mark.parametrize("first", [0, 1, 100, 128, 199])
def test_rows_before_the_adapter_are_the_bases_and_those_after_see_them(
    tiny: LoadedModel, first: int
) -> None:
    """One pass, or the base's KV as a prefix and the adapter's rows over it: the same bits."""
    adapter = tiny.adapters["one"]
    base = run(tiny, Plan(TOKENS))
    mixed = run(tiny, Plan(TOKENS, adapter_from=first), adapter=adapter)
    assert torch.equal(mixed.captured[:, :, :first], base.captured[:, :, :first])
    assert not torch.equal(mixed.captured[:, :, first:], base.captured[:, :, first:])
    if not first:
        assert torch.equal(mixed.logits, run(tiny, Plan(TOKENS), adapter=adapter).logits)
        return
    over = Plan(TOKENS, prefix=HeldSource(base.captured[:, :, :first]))
    after = run(tiny, over, adapter=adapter)
    assert torch.equal(after.logits, mixed.logits)
    assert torch.equal(after.captured, mixed.captured[:, :, first:])


def test_a_prompt_without_invocation_is_the_bases(tiny: LoadedModel) -> None:
    adapter = tiny.adapters["one"]
    without = run(tiny, Plan(TOKENS, adapter_from=len(TOKENS)), adapter=adapter)
    assert torch.equal(without.logits, run(tiny, Plan(TOKENS)).logits)


def test_cut_in_passes_it_is_the_same(tiny: LoadedModel) -> None:
    """The cut at 128 lies before the adapter; the second pass holds rows of both."""
    adapter = tiny.adapters["one"]
    plan = Plan(TOKENS, adapter_from=150)
    whole, cut = (run(tiny, plan, adapter=adapter, cuts=cuts) for cuts in ((), (128,)))
    assert torch.equal(cut.logits, whole.logits)
    assert torch.equal(cut.captured, whole.captured)
