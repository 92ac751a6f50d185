"""Several models in one process: chosen by name, over one store, one budget and one copy of equal weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.core import Share
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import CONTEXT, LAYERS, ask, point, settings, tell_pair

SHAPE = {"num_hidden_layers": LAYERS, "max_position_embeddings": 1024}


@pytest.fixture(scope="module")
def folders(tiny_model: Callable[..., Path]) -> dict[str, Path]:
    """Two models of one shape and tokenizer, with weights of their own."""
    return {name: tiny_model("llama", seed=n, **SHAPE) for n, name in enumerate(("plan", "work"))}


@pytest.fixture
def models(folders: dict[str, Path], tmp_path: Path) -> Iterator[kdn.OpenModels]:
    with kdn.open_models(folders, config=settings(tmp_path)) as made:
        yield made
        for one in made.values():
            one.check()


def test_each_answers_as_it_does_alone(
    models: kdn.OpenModels, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert (list(models), models.first.name) == (["plan", "work"], "plan")
    texts = {name: one.generate("Hello", max_tokens=8).token_ids for name, one in models.items()}
    for name, folder in folders.items():
        with kdn.open(folder, config=settings(tmp_path / name)) as alone:
            assert alone.generate("Hello", max_tokens=8).token_ids == texts[name]
    assert texts["plan"] != texts["work"]


def test_there_is_one_store_and_one_budget(models: kdn.OpenModels) -> None:
    plan, work = models["plan"], models["work"]
    assert plan.store is work.store is models.store
    totals = {one.engine.stat().kv_total_bytes for one in models.values()}
    assert len(totals) == 1
    ask(plan)
    assert ask(plan)[2].exact == CONTEXT
    assert ask(work)[2].exact == 0, "KV of other weights is not the model's own"


def test_siblings_share_by_themselves_where_the_pair_was_profiled(models: kdn.OpenModels) -> None:
    """Nothing is asked for: the profile is enough, and `exact` still keeps it away."""
    plan, work = models["plan"], models["work"]
    tell_pair(plan, work, [point(work=0.0)])
    ask(plan)
    shared = ask(work)
    assert (shared[2].exact, shared[2].shared, shared[2].recomputed) == (0, CONTEXT, 12)
    alone = ask(work, share=Share("exact"))
    assert alone[2].shared == 0
    assert alone[1] != shared[1], "another model's KV was read"
    assert ask(plan)[2].exact == CONTEXT, "the sender goes on with its own"


def test_equal_weights_are_in_memory_once(folders: dict[str, Path], tmp_path: Path) -> None:
    both = {"a": folders["plan"], "b": folders["plan"], "c": folders["work"]}
    with kdn.open_models(both, config=settings(tmp_path)) as models:
        a, b, c = (one.model.decoder for one in models.values())
        assert a.layers[0] is b.layers[0]
        assert a.layers[0] is not c.layers[0]
        assert a.fingerprint == b.fingerprint
        ask(models["a"])
        assert ask(models["b"])[2].exact == CONTEXT


def test_adapters_belong_to_a_model(folders: dict[str, Path], tmp_path: Path) -> None:
    own = write_adapter(tmp_path / "x", 1, ("q_proj",))
    opened = kdn.open_models(folders, config=settings(tmp_path), adapters={"work": {"x": own}})
    with opened as models:
        assert list(models["work"].model.adapters) == ["x"]
        assert models["work"].generate("Hello", adapter="x", max_tokens=2).token_ids
        with pytest.raises(kdn.UnknownModel, match="no adapter is called 'x'"):
            models["plan"].generate("Hello", adapter="x")


def test_names_that_mean_two_things_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(kdn.BadInput, match="two models are called"):
        kdn.open_models([folders["plan"], folders["plan"]], config=config)
    with pytest.raises(kdn.BadInput, match="'work' names two"):
        kdn.open_models(folders, config=config, adapters={"plan": {"work": tmp_path}})
    with pytest.raises(kdn.BadInput, match="'other', which is not opened; name one of plan, work"):
        kdn.open_models(folders, config=config, adapters={"other": {}})
    with pytest.raises(kdn.BadInput, match="device is 3; it must be a text or None"):
        kdn.open_models(folders, config=config, device=3)  # type: ignore[arg-type]
    with pytest.raises(kdn.BadInput, match="give at least one"):
        kdn.open_models([], config=config)
    with pytest.raises(kdn.BadInput, match="give a list of names or paths"):
        kdn.open_models("plan", config=config)
