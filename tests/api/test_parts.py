"""The named parts of an open model: prompts, one-token answers, calibration, cost, and the end of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.api import blending, over
from kdn.api.foresight import Foresight
from kdn.api.queries import QueryOptions
from kdn.clock import ManualClock
from kdn.config import BlendConfig, Config, StoreConfig, load_config
from kdn.core import Blend, JctModel, Role
from kdn.rag import Part
from kdn.reuse import lossy_recipe
from kdn.reuse.blend import AttendedRows, one_layer
from kdn.store import open_store
from kdn.trace import Recorder, Value

TEXT = "The lamp is lit at dusk. " * 8


@pytest.fixture
def k(tiny_model: Callable[..., Path], tmp_path: Path) -> Iterator[kdn.Kdn]:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    with kdn.open(tiny_model(max_position_embeddings=2048), config=config, dtype="float32") as made:
        yield made
        made.check()


def test_a_document_stands_behind_the_neutral_prelude(k: kdn.Kdn) -> None:
    prompt = k.prompts.of_document(TEXT, "lamp.txt")
    roles = [segment.role for segment in prompt.segments]
    assert roles == [Role.PRELUDE, Role.DOCUMENT, Role.QUESTION]
    assert prompt.segments[1].source == "lamp.txt"


def test_ids_are_never_given_twice(k: kdn.Kdn) -> None:
    ids = {k.prompts.request("?").id for _ in range(50)} | {k.prompts.new_id("r")}
    assert len(ids) == 51


def test_prefill_stores_what_lookup_finds(k: kdn.Kdn) -> None:
    assert k.lookup(TEXT)[0].num_tokens == 0
    tokens = k.prefill(TEXT)
    match, wanted = k.lookup(TEXT)
    assert 0 < tokens < wanted
    assert match.num_tokens == wanted
    with pytest.raises(kdn.BadInput, match=r"empty\.txt is empty"):
        k.prefill(" \n", "empty.txt")


def test_what_the_stores_lossy_codec_wrote_is_found_by_all(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Two documents of the same length behind the prelude: the first is the prefix, the second is blended."""
    config = Config(home=tmp_path, store=StoreConfig(codec="int8"))
    with kdn.open(tiny_model(max_position_embeddings=2048), config=config, dtype="float32") as k:
        texts = [TEXT, TEXT.replace("lamp", "fire")]
        sizes = [k.prefill(text) for text in texts]
        k.store.flush()
        match, wanted = k.lookup(texts[0])
        assert match.num_tokens == wanted
        assert match.hits[-1].id.recipe == lossy_recipe("int8")
        first = Part("d", "", "", texts[0], sizes[0], ())
        assert Foresight(k.parts).chunk(first, QueryOptions()).num_stored == sizes[0]
        usage = k.generate("?", texts, max_tokens=1, reuse="blend", ratio=0.0).usage
        assert (usage.exact, usage.lossy, usage.blended) == (0, wanted, sizes[1])


def test_one_layer_chooses_the_rows_where_the_settings_name_one(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The tiny model has two layers, 0 and 1."""
    folder = tiny_model()
    for layer, rule in ((None, AttendedRows()), (1, one_layer(1, 2))):
        config = Config(home=tmp_path, blend=BlendConfig(layer=layer))
        with kdn.open(folder, config=config) as opened:
            assert opened.parts.blend.rule == rule
    with pytest.raises(kdn.BadConfig, match=r"blend\.layer is 2; the model has layers 0 to 1"):
        kdn.open(folder, config=Config(home=tmp_path, blend=BlendConfig(layer=2)))


def test_a_folder_with_dots_has_its_whole_name(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [tmp_path / "Llama-3.1", tmp_path / "Llama-3.2"]
    for folder in folders:
        tiny_model().rename(folder)
    with kdn.open_models(folders, config=Config(home=tmp_path)) as opened:
        assert {name: one.model.name for name, one in opened.items()} == {
            "Llama-3.1": "Llama-3.1",
            "Llama-3.2": "Llama-3.2",
        }


def test_an_adapter_that_is_not_loaded_is_named(k: kdn.Kdn) -> None:
    with pytest.raises(kdn.UnknownModel, match="no adapter is called 'x'; loaded adapters: none"):
        k.generate("?", adapter="x", max_tokens=1)


def test_rows_are_labelled_with_probabilities(k: kdn.Kdn) -> None:
    rows = [{"text": "a cat"}, {"text": "a stone"}, {"text": "a dog"}]
    table = k.label(rows, "Is it alive? {text}", ["yes", "no"])
    assert len(table.labelled) == 3
    for one in table.labelled:
        assert sum(one.probabilities) == pytest.approx(1)
        assert one.label in ("yes", "no")
    none = k.label(rows, "Is it alive? {text}", ["yes", "no"], threshold=1.0)
    assert none.num_abstained == 3
    known = [{**row, "right": "yes"} for row in rows]
    assert k.label(known, "{text}", ["yes", "no"], known="right").num_known == 3
    with pytest.raises(kdn.BadInput, match="item 1 is 'b'"):
        k.label([rows[0], "b"], "{text}", ["yes", "no"])  # type: ignore[list-item]


def test_scores_and_decisions_are_those_of_their_questions(k: kdn.Kdn) -> None:
    both = k.score("Which?", ["a", "b"], choices=["x", "y", "z"])
    alone = k.score("Which?", "b", choices=["x", "y", "z"])
    assert both[1].probabilities == pytest.approx(alone[0].probabilities, abs=1e-6)
    yes, no = k.decide(TEXT, "Is it dark?")[0].probabilities
    assert yes + no == pytest.approx(1)


def test_a_fit_changes_what_an_ingest_is_thought_to_take(k: kdn.Kdn) -> None:
    assert k.cost._prefill_rate() == 2000
    k.calibration.keep_jct(JctModel(0.5, 0.0005, 0.0, 0.0, 0.1, "fit"))
    assert k.cost._prefill_rate() == pytest.approx(1000)  # 1,000 tokens in a second
    assert k.cost.ledger().saved.value >= 0


@pytest.mark.parametrize(
    ("reuse", "ratio", "why"), [("all", None, "reuse is 'all'"), ("blend", 1.5, "ratio is 1.5")]
)
def test_reuse_is_checked(reuse: kdn.api.Reuse, ratio: float | None, why: str) -> None:
    with pytest.raises(kdn.BadInput, match=why):
        blending(reuse, ratio)


def test_reuse_becomes_an_option_of_the_request() -> None:
    assert blending("exact") == ()
    assert blending("blend", 0.5, "papers") == (Blend(0.5, "papers"),)


class BadTrace(Recorder):
    def event(self, name: str, **fields: Value) -> None:
        raise OSError("the disk of traces is full")


def test_a_trace_that_raises_costs_no_background_work(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The lamp is the prefix of the first answer; the fire is stored behind the prelude afterwards."""
    model, config = tiny_model(max_position_embeddings=2048), load_config({}, home=tmp_path)
    texts = [TEXT, TEXT.replace("lamp", "fire")]
    with kdn.open(model, config=config, dtype="float32", trace=BadTrace()) as k:
        assert k.generate("?", texts, max_tokens=1, reuse="blend").usage.blended == 0
        k.catch_up()
        match, wanted = k.lookup(texts[1])
        assert match.num_tokens == wanted
        k.check()


def test_the_same_model_over_another_store_shares_no_blocks(k: kdn.Kdn) -> None:
    k.prefill(TEXT)
    other = over(k.parts, open_store(None), ManualClock(), Recorder())
    try:
        assert other.lookup(TEXT)[0].num_tokens == 0
        assert other.generate("?", [TEXT], max_tokens=4).text == (
            k.generate("?", [TEXT], max_tokens=4).text
        )
    finally:
        other.close()


def test_a_closed_model_says_so_and_may_be_closed_again(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    k = kdn.open(tiny_model(), home=tmp_path)
    k.close()
    with pytest.raises(kdn.EngineFailed, match="closed"):
        k.generate("?", max_tokens=1)
    with pytest.raises(kdn.EngineFailed, match="closed"):
        k.score("?", "a")
    k.close()
