"""A packaged model ranks with the adapter trained for the layout, whichever interface is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import load_config
from kdn.rank import find_template, layout_adapters
from kdn.serve import served
from tests.cli.program import kdn as run_kdn
from tests.serve.running import running

QUERY = "How is the lock opened?"
TEXTS = ["Bread is sold until noon.", "The lock opens with the brass key."]
PACKAGED = "smollm2-135m"


@pytest.fixture(scope="module")
def home(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def k(home: Path) -> Iterator[kdn.Kdn]:
    with kdn.open(PACKAGED, config=load_config({}, home=home)) as found:
        yield found


def scores(k: kdn.Kdn, **options: Any) -> list[float]:
    found = {one.index: one.score for one in k.rerank(QUERY, TEXTS, **options)}
    return [found[0], found[1]]


def test_every_interface_ranks_with_the_trained_adapter(k: kdn.Kdn, home: Path) -> None:
    named, alone = scores(k, adapter="document-first"), scores(k, adapter="none")
    assert named != pytest.approx(alone, abs=0.05)
    assert scores(k) == named
    body = {"query": QUERY, "documents": TEXTS}
    with running(served(k)) as server:
        for options, expected in (
            ({}, named),
            ({"model": PACKAGED}, named),
            ({"model": "document-first"}, named),
            ({"adapter": "none"}, alone),
        ):
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                answer = server.http.post(path, json=body | options).json()
                found = {one["index"]: one["relevance_score"] for one in answer["results"]}
                assert [found[0], found[1]] == pytest.approx(expected, abs=1e-5)
        refused = server.http.post("/rerank", json=body | {"adapter": "other"})
        assert refused.status_code == 400
    for number, text in enumerate(TEXTS):
        (home / f"{number}.txt").write_text(text, "utf-8")
    files = [home / "0.txt", home / "1.txt"]
    for more, expected in (((), named), (("--adapter", "none"), alone)):
        told = run_kdn(home, "rerank", QUERY, *files, "--json", *more)
        found = {one["index"]: one["score"] for one in told.json["results"]}
        assert [found[0], found[1]] == pytest.approx(expected, abs=1e-5)
        assert ("ranked by the adapter document-first" in told.err) == (not more)


def test_each_layout_has_its_own_and_other_templates_have_none(k: kdn.Kdn) -> None:
    assert scores(k, layout="query-first") == scores(k, adapter="query-first", layout="query-first")
    choose = k.scoring.reranker
    assert choose("document-first", "instruct") == "document-first"
    assert choose("document-first", find_template("qwen3-reranker")) is None
    assert choose("document-first", None, "none") is None
    assert choose("document-first", "qwen3-reranker", "query-first") == "query-first"


def test_an_unloaded_adapter_leaves_ranking_to_the_model(k: kdn.Kdn) -> None:
    name = "query-first"
    trained, alone = scores(k, layout=name), scores(k, layout=name, adapter="none")
    k.model.unload_adapter(name)
    assert scores(k, layout=name) == alone
    with running(served(k)) as server:
        body = {"query": QUERY, "documents": TEXTS, "layout": name}
        assert server.http.post("/rerank", json=body).status_code == 200
    k.model.load_adapter(name, layout_adapters(PACKAGED)[name])
    assert scores(k, layout=name) == trained != alone


def test_a_model_without_a_trained_adapter_ranks_alone(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with kdn.open(tiny_model("llama"), home=tmp_path) as k:
        assert k.scoring.reranker() is None
        assert scores(k) == scores(k, adapter="none")
