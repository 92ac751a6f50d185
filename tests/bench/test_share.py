"""The benchmark of sharing: its sums by hand, and the whole on a tiny model with two adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.lamps import write_lamps
from tests.engine.test_company import weaken, write_adapter

from kdn import api
from kdn.bench import BenchOptions, load_bench
from kdn.bench.share.pair import SharePair, adapters_in, lengthened_items, pairs_of
from kdn.bench.share.rows import ShareRows
from kdn.bench.share.sums import (
    KEYS,
    chosen_arm,
    critical_share,
    score_loss,
    share_notes,
    share_summary,
)
from kdn.errors import BadInput

PAIR = "qa-lora <- base"


FRONTIER = [
    {"arm": "group", "work": 0.5, "kl": 0.3},
    {"arm": "rows", "work": 0.5, "kl": 0.2},
    {"arm": "longer", "work": 0.7, "kl": 0.1},
]
"""Of a profile: the last one takes more than half of the work."""


def item(number: int, **arms: tuple[float, float, float]) -> dict[str, Any]:
    """Of each arm: kl, right, work."""
    found = {name.replace("_", " "): _arm(*values) for name, values in arms.items()}
    return {"pair": PAIR, "item": str(number), "arms": found}


def _arm(kl: float, right: float, work: float) -> dict[str, float]:
    return {"kl": kl, "nll": kl, "right": right, "work": work}


def test_questions_of_one_context_count_as_one() -> None:
    """Of the first context one of two is lost, of the second the only one is not: a quarter, not a third."""
    lost, kept = item(0, own=(0, 1, 1), reuse=(1, 0, 0)), item(0, own=(0, 1, 1), reuse=(0, 1, 0))
    names = ("a/0", "a/1", "b/0")
    items = [one | {"item": name} for one, name in zip((lost, kept, kept), names, strict=True)]
    loss = score_loss(items, "reuse")
    assert loss is not None
    assert loss[0] == 0.25


def test_losses_are_shares_of_the_receivers_own_score() -> None:
    """The receiver is right four times of five; the group keeps three of the four, rows all of them."""
    items = [
        item(
            n,
            own=(0, float(n < 4), 1),
            reuse=(0.4, float(n < 2), 0),
            group=(0.2, float(n < 3), 0.5),
            rows=(0.1, float(n < 4), 0.5),
            frontier=(0.1, float(n < 4), 0.5),
            random_group=(0.3, float(n < 2), 0.5),
        )
        for n in range(5)
    ]
    for arm, lost in (("own", 0), ("group", 0.25), ("reuse", 0.5)):
        loss = score_loss(items, arm)
        assert loss is not None
        assert (loss[0], loss[1] <= lost <= loss[2]) == (lost, True)
    for one in items:
        one["arms"]["frontier: rows"] = one["arms"].pop("frontier")
    assert score_loss([item(0, own=(0, 0, 1), reuse=(1, 0, 0))], "reuse") is None
    kept = ShareRows(None)
    kept.keep({"pair": PAIR, "weights": "a b", "profile": FRONTIER})
    for line in items:
        kept.keep(line)
    kept.keep(
        {"round": {"nothing": 90.0, "shared, memory": 30.0}, "pair": PAIR, "length": 9, "tokens": 9}
    )
    kept.keep(
        {"round": {"nothing": 80.0, "shared, memory": 40.0}, "pair": PAIR, "length": 9, "tokens": 9}
    )
    summary = share_summary(kept)
    assert tuple(summary) == KEYS
    assert (summary["quality_loss"], summary["quality_loss_group"]) == (0, 0.25)
    assert (summary["quality_loss_random"], summary["prefill_speedup"]) == (0.5, 2.5)
    assert summary["alora_score_diff"] is None


def test_the_profile_chooses_and_the_interval_decides_about_the_aim() -> None:
    """Items on which the group is nearer than the rows change nothing about the choice.

    Ten right answers of which none is lost leave up to 3 in 10, and three hundred 1 in 100.
    """
    assert chosen_arm(FRONTIER) == "frontier: rows"
    assert chosen_arm(FRONTIER[2:]) is None
    for right, of, said in (
        (300, 300, "is met"),
        (10, 10, "can be neither claimed nor denied"),
        (9, 10, "can be neither claimed nor denied"),
        (0, 10, "is missed"),
    ):
        kept = ShareRows(None)
        kept.keep({"pair": PAIR, "weights": "a b", "profile": FRONTIER})
        for n in range(of):
            one = item(n, own=(0, 1, 1), reuse=(0.4, 0, 0), group=(0.01, 1, 0.5))
            one["arms"]["frontier: rows"] = _arm(0.2, float(n < right), 0.5)
            kept.keep(one)
        assert "0.50 of plain reuse's KL" in share_notes(kept)[0]
        assert f"the aim of 1% {said}." in share_notes(kept)[0]


def test_a_layer_is_critical_where_it_costs_a_tenth() -> None:
    """Of four layers one costs 0.2 of the 1.0 that reuse of all costs."""
    costs = {f"layer_{n}": (0.2 if n == 2 else 0.01, 1.0, 0.75) for n in range(4)}
    items = [item(n, own=(0, 1, 1), reuse=(1.0, 0, 0), **costs) for n in range(2)]
    assert critical_share(items) == 0.25
    assert critical_share([item(0, own=(0, 1, 1), reuse=(1.0, 0, 0))]) is None


def test_items_behind_longer_contexts_have_rows_of_their_own() -> None:
    """They lose all of the score; the summary is of the pair's other items, which lose none."""
    kept, longer = ShareRows(None), SharePair("base", "qa-lora", "qa").name_at(2000)
    kept.keep({"pair": PAIR, "weights": "a b", "profile": FRONTIER})
    one = item(0, own=(0, 1, 1), reuse=(0.4, 0, 0), group=(0.1, 1, 0.5))
    one["arms"]["frontier: rows"] = _arm(0.2, 1, 0.5)
    kept.keep(one)
    lost = item(0, own=(0, 1, 1), reuse=(0.4, 0, 0), group=(0.3, 0, 0.5))
    lost["arms"]["frontier: rows"] = _arm(0.1, 0, 0.5)
    kept.keep(lost | {"pair": longer})
    assert share_summary(kept)["quality_loss"] == 0
    assert kept.pairs == [PAIR, longer]
    said = share_notes(kept)
    assert "0.50 of plain reuse's KL" in said[0]
    assert said[1].startswith(f"{longer}: 1 held-out items")
    assert "0.25 of plain reuse's KL, too few items for a score." in said[1]


def test_a_context_is_lengthened_by_others_and_stays_whole(
    tiny_model: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    """Articles have some 192 bytes, which are tokens: one is whole, others stand around it."""
    with api.open(tiny_model("llama"), home=tmp_path) as opened:
        found = lengthened_items(opened, data, "qa", 500, 2)
        again = lengthened_items(opened, data, "qa", 500, 2)
        short = lengthened_items(opened, data, "qa", 100, 2)
        texts = [opened.model.tokenizer.decode(one.context) for _, one in found]
    assert found == again
    assert [name.rsplit("/", 1)[1] for name, _ in found] == ["0", "0"]
    for (name, one), text, (_, less) in zip(found, texts, short, strict=True):
        number = name.split("-")[1]
        assert text.count(f"gate {number} is lit at {number}. ") == 6, text
        own = 6 * (30 + 2 * len(number))
        assert 490 <= own + len(one.context) - len(less.context) <= 510


def test_pairs_are_ordered() -> None:
    names = ["qa-lora", "qa-alora", "intent-lora"]
    assert [one.name for one in pairs_of(names, quick=False)] == [
        "qa-lora <- base", "intent-lora <- base",
        "qa-lora <- intent-lora", "intent-lora <- qa-lora",
    ]  # fmt: skip
    assert [one.sender for one in pairs_of(names, quick=False, crossed=False)] == ["base", "base"]


def test_adapters_of_a_known_model_are_shipped() -> None:
    assert list(adapters_in(None, "models/qwen2.5-coder-0.5b.gguf")) == ["qa-lora", "intent-lora"]


def test_without_adapters_it_says_where_they_come_from(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(BadInput, match=r"scripts/share/train\.py"):
            adapters_in(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lamps(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA, and the same as an aLoRA that "Question:" invokes (bytes are tokens here)."""
    folder = tmp_path_factory.mktemp("adapters")
    weaken(write_adapter(folder / "qa-lora", 1, ("q_proj", "v_proj", "down_proj")))
    shutil.copytree(folder / "qa-lora", folder / "qa-alora")
    return folder


def test_the_whole_runs_and_goes_on_where_it_was(
    tiny_model: Callable[..., Path], data: Path, adapters: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama", num_hidden_layers=4, max_position_embeddings=2048)
    _invoke(adapters / "qa-alora", model)
    rows, said = tmp_path / "rows.jsonl", list[str]()
    options = BenchOptions(
        model=str(model), data=data, adapters=adapters, rows=rows, quick=True, pairs=1,
        threads=1, home=tmp_path, say=said.append,
    )  # fmt: skip
    result = load_bench("share")(options)
    arms = {str(row["arm"]): row for row in result.rows if row["pair"] == PAIR}
    own, group, rows_arm = arms["own"], arms["group"], arms["rows, equal work"]
    assert (own["kl"], own["nll_change"]) == (0, 0)
    assert {"random group", "prefix group", "suffix group", "reuse", "layer 3"} <= arms.keys()
    assert float(str(rows_arm["work"])) == pytest.approx(float(str(group["work"])), abs=0.1)
    assert float(str(arms["reuse"]["kl"])) > 0
    assert tuple(result.summary) == KEYS
    assert result.summary["critical_share"] is not None
    assert any(row["arm"] == "own cache" for row in result.rows)
    assert result.page == f"share-{model.name}", (
        "pages of other models do not overwrite the usual one's"
    )
    kept = rows.read_text()
    again = load_bench("share")(options)
    assert (again.summary, rows.read_text()) == (result.summary, kept)
    page = load_bench("share")(replace(options, only="page", data=None, adapters=None))
    assert page.summary == result.summary
    more = load_bench("share")(replace(options, pairs=2))
    assert rows.read_text().startswith(kept)
    elsewhere = replace(options, home=tmp_path / "elsewhere", pairs=2)
    assert load_bench("share")(elsewhere).summary == more.summary, "arms follow from the rows"
    with pytest.raises(BadInput, match="measured of other weights, or with --quick"):
        load_bench("share")(replace(options, quick=False))
    with pytest.raises(BadInput, match="no part 'speed'"):
        load_bench("share")(replace(options, only="speed"))


def test_without_an_alora_only_its_rows_are_missing(
    tiny_model: Callable[..., Path], data: Path, adapters: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "qa-lora", tmp_path / "loras" / "qa-lora")
    options = BenchOptions(
        model=str(tiny_model("llama", num_hidden_layers=4, max_position_embeddings=2048)),
        data=data, adapters=tmp_path / "loras", quick=True, threads=1, home=tmp_path, only="base",
    )  # fmt: skip
    result = load_bench("share")(options)
    assert result.summary["critical_share"] is not None
    assert (result.summary["alora_score_diff"], result.config["rounds"]) == (None, 0)


def _invoke(adapter: Path, model: Path) -> None:
    from kdn.model.text.tokenizer import load_tokenizer

    tokenizer, _ = load_tokenizer(model, ())
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["alora_invocation_tokens"] = list(tokenizer.encode("Question:"))
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
