"""Several models behind one port: a request names the one that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

import kdn
from kdn.model import load_model
from kdn.serve import served
from kdn.serve.service import ServedModels
from tests.api.test_models import SHAPE
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import point, settings, tell_pair
from tests.serve.running import Running, running

TEXT = "The planner and the worker read the same long report. " * 6


@pytest.fixture(scope="module")
def models(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.OpenModels]:
    folders = {name: tiny_model("llama", seed=n, **SHAPE) for n, name in enumerate(("p", "w"))}
    home = tmp_path_factory.mktemp("home")
    adapters = {"w": {"tuned": write_adapter(home / "tuned", 3, ("q_proj", "v_proj"))}}
    with kdn.open_models(folders, config=settings(home), adapters=adapters) as made:
        yield made


@pytest.fixture(scope="module")
def server(models: kdn.OpenModels) -> Iterator[Running]:
    first, *others = (served(one) for one in models.values())
    with running(first, others=others) as found:
        yield found


def chat(server: Running, model: str | None, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}
    response = server.http.post("/v1/chat/completions", json=body | {"model": model} | more)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_all_are_listed_and_each_answers(server: Running, models: kdn.OpenModels) -> None:
    cards = server.http.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards][:3] == ["p", "w", "tuned"]
    assert cards[2]["parent"] == "w"
    for name in ("p", "w"):
        said = chat(server, name)
        assert said["model"] == name
        own = models[name].generate("Hi", max_tokens=6, temperature=0).text
        assert said["choices"][0]["message"]["content"] == own
    assert chat(server, "tuned")["model"] == "tuned"
    assert chat(server, None)["model"] == "p", "the first answers where none is named"


def test_cards_tell_what_answers_depend_on(
    models: kdn.OpenModels, tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    """A journal of `kdn label --engine` goes on where a server starts again with the same, only."""
    folder, plain = tiny_model("llama", seed=0, **SHAPE), served(models["p"])
    others = [
        replace(
            plain,
            name=f"{dtype} {kind}",
            loading=load_model(folder, cache_dir=model_cache, dtype=dtype, quantization=kind),
            adapters=(),
        )
        for dtype, kind in (("float32", "none"), ("float32", "int8"), ("bfloat16", "none"))
    ]
    others.append(served(models["w"]))
    with running(plain, others=others) as server:
        cards = server.http.get("/v1/models").json()["data"]
        told = {card["id"]: card["weights"] for card in cards if "weights" in card}
        for name in ("p", "w", "tuned"):  # and so does each answer
            assert chat(server, name)["system_fingerprint"] == told[name]
            plain_text = {"model": name, "prompt": "Hi", "max_tokens": 1}
            said = server.http.post("/v1/completions", json=plain_text).json()
            assert said["system_fingerprint"] == told[name]
    assert told["p"] in (told["float32 none"], told["bfloat16 none"]), "whichever is this machine's"
    del told["p"]
    assert {"w", "tuned"} < told.keys()
    assert len(set(told.values())) == len(told)


def test_an_adapter_that_two_models_have_is_named_once(models: kdn.OpenModels) -> None:
    """Packaged adapters come with each opening of their model."""
    first, second = (replace(served(one), adapters=("ranker",)) for one in models.values())
    assert ServedModels(first, second).names() == ["p", "ranker", "w"]


def test_a_name_that_is_not_served_is_404_with_the_list(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has p, w, tuned"):
        server.openai.completions.create(model="q", prompt="x")
    for path in ("/tokenize", "/classify", "/v1/responses"):
        body = {"model": "q", "input": "x", "prompt": "x", "labels": ["a", "b"]}
        if path == "/tokenize":
            body = {"model": "q", "prompt": "x"}
        elif path == "/v1/responses":
            body = {"model": "q", "input": "x"}
        else:
            del body["prompt"]
        assert server.http.post(path, json=body).status_code == 404
    assert server.http.get("/v1/models/q").status_code == 404


def test_metrics_are_by_model(server: Running) -> None:
    before = {one: server.metric("vllm:prompt_tokens_total", model_name=one) for one in "pw"}
    tokens = chat(server, "tuned")["usage"]["prompt_tokens"]
    after = {one: server.metric("vllm:prompt_tokens_total", model_name=one) for one in "pw"}
    assert after == {"p": before["p"], "w": before["w"] + tokens}
    for one in "pw":
        assert server.metric("vllm:num_requests_running", model_name=one) == 0


def test_a_sibling_reads_what_the_first_has_read(server: Running, models: kdn.OpenModels) -> None:
    """Profiled, so by itself; the answer says so, and the worker's metrics."""
    tell_pair(models["p"], models["w"], [point(work=0.0)])
    documents = [{"text": TEXT}]
    assert chat(server, "p", documents=documents)["kdn"]["shared"] == 0
    answer = chat(server, "w", documents=documents)
    shared = answer["kdn"]["shared"]
    assert shared > 0.8 * answer["usage"]["prompt_tokens"]
    kinds = server.metric("kdn_reused_tokens_total", model_name="w", kind="shared")
    assert kinds == shared
    exact = chat(server, "w", documents=documents, kdn={"share": "exact"})
    assert exact["kdn"]["shared"] == 0
