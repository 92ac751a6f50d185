"""Adapters loaded and unloaded over HTTP: names move, and KV never answers for other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import kdn
from kdn.serve import ServeSettings, served
from kdn.serve.store.grants import Grant
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import settings
from tests.serve.running import Running, running

MODULES = ("q_proj", "v_proj", "gate_proj", "down_proj")
DOCUMENT = "An old report that both adapters have to read before they say a word. " * 4


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", num_hidden_layers=4, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders: `old`, `new` as it was retrained, and one outside what may be loaded from."""
    place = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("allowed/old", "allowed/new", "outside")):
        (place / name).parent.mkdir(exist_ok=True)
        write_adapter(place / name, seed + 1, MODULES)
    (place / "allowed" / "link").symlink_to(place / "outside")
    return place / "allowed"


@pytest.fixture
def server(base: Path, folder: Path, tmp_path: Path) -> Iterator[Running]:
    with kdn.open(base, config=settings(tmp_path)) as opened:
        where = ServeSettings(port=0, grace_s=5, adapters_folder=folder)
        with running(served(opened), where) as found:
            yield found
        opened.check()


def load(server: Running, name: str, path: str, **more: Any) -> httpx.Response:
    body = {"lora_name": name, "lora_path": path} | more
    return server.http.post("/v1/load_lora_adapter", json=body)


def names(server: Running) -> list[str]:
    return [one["id"] for one in server.http.get("/v1/models").json()["data"]]


def unload(server: Running, name: str) -> httpx.Response:
    return server.http.post("/v1/unload_lora_adapter", json={"lora_name": name})


def body(model: str, **more: Any) -> dict[str, Any]:
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "What does it say?"}],
        "documents": [{"text": DOCUMENT}],
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
    }
    return asked | more


def ask(server: Running, model: str, **more: Any) -> tuple[list[float], dict[str, Any]]:
    """Log-probabilities, which tell weights apart, and where the prompt's KV came from."""
    response = server.http.post("/v1/chat/completions", json=body(model, **more))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == model
    entries = answer["choices"][0]["logprobs"]["content"]
    return [one["logprob"] for one in entries], answer["kdn"]


@pytest.fixture(scope="module")
def alone(base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server says that began with the adapter."""
    found = {}
    for name in ("old", "new"):
        config = settings(tmp_path_factory.mktemp(name))
        with (
            kdn.open(base, config=config, adapters={"qa": folder / name}) as opened,
            running(served(opened)) as there,
        ):
            found[name] = ask(there, "qa")[0]
    assert found["old"] != found["new"]
    return found


def test_an_adapter_comes_and_goes(server: Running, alone: dict[str, Any]) -> None:
    assert "qa" not in names(server)
    loaded = load(server, "qa", "old")
    assert (loaded.status_code, loaded.text) == (
        200, "Success: LoRA adapter 'qa' added successfully.",
    )  # fmt: skip
    assert "qa" in names(server)
    assert ask(server, "qa")[0] == alone["old"]
    assert unload(server, "qa").text == "Success: LoRA adapter 'qa' removed successfully."
    assert server.http.post("/v1/chat/completions", json=body("qa")).status_code == 404
    assert unload(server, "qa").status_code == 404


def test_a_retrained_adapter_under_its_old_name_reuses_nothing_of_the_old(
    server: Running, alone: dict[str, Any]
) -> None:
    load(server, "qa", "old")
    assert ask(server, "qa")[0] == alone["old"]
    assert ask(server, "qa")[1]["exact"] > 100, "its own KV is reused"
    again = load(server, "qa", "new")
    assert (again.status_code, "load_inplace" in again.text) == (400, True)
    assert load(server, "qa", "new", load_inplace=True).status_code == 200
    said, where = ask(server, "qa")
    assert (said, where["exact"]) == (alone["new"], 0)
    assert ask(server, "qa")[0] == alone["new"]
    load(server, "qa", "old", load_inplace=True)
    said, where = ask(server, "qa")
    assert said == alone["old"]
    assert where["exact"] > 100, "the old weights find their KV again"


def test_what_runs_ends_under_what_it_began_with(server: Running, alone: dict[str, Any]) -> None:
    """A stream of 600 tokens begins with the old weights; the name is given to the new ones meanwhile."""
    load(server, "qa", "old")
    whole = ask(server, "qa", max_tokens=600)[0]
    stream = server.openai.chat.completions.create(**_streamed(body("qa", max_tokens=600)))
    events = iter(stream)
    got = [next(events) for _ in range(3)]
    load(server, "qa", "new", load_inplace=True)
    assert ask(server, "qa")[0] == alone["new"]
    got += list(events)
    entries = [one for event in got for choice in event.choices if choice.logprobs
               for one in choice.logprobs.content or ()]  # fmt: skip
    assert [one.logprob for one in entries] == whole
    assert unload(server, "qa").status_code == 200


def _streamed(asked: dict[str, Any]) -> dict[str, Any]:
    own = {name: asked.pop(name) for name in ("documents", "ignore_eos")}
    return asked | {"stream": True, "extra_body": own}


def test_bad_loads_are_refused_in_words(server: Running, folder: Path) -> None:
    for path in ("../outside", "link", "/etc", str(folder.parent / "outside"), "a\0b/../../../x"):
        refused = load(server, "x", path)
        assert (refused.status_code, "not within the folder" in refused.text) == (403, True), path
    assert load(server, "x", "nowhere").status_code in (400, 404)
    assert "adapter_config.json" in load(server, "x", "nowhere").text
    assert load(server, "a@b", "old").status_code == 400
    base = server.http.get("/v1/models").json()["data"][0]["id"]
    assert "choose another name" in load(server, base, "old").text
    assert load(server, "x", "old", base_model_name="nobody").status_code == 404
    assert load(server, "x", str(folder / "old"), base_model_name=base).status_code == 200
    assert server.http.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 400


def test_without_a_folder_no_adapter_comes_or_goes(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    with (
        kdn.open(base, config=settings(tmp_path), adapters={"qa": folder / "old"}) as opened,
        running(served(opened)) as server,
    ):
        for refused in (load(server, "new", str(folder / "new")), unload(server, "qa")):
            assert (refused.status_code, "serve.adapters_folder" in refused.text) == (403, True)
        assert "qa" in names(server)


def test_a_callers_key_moves_no_adapter_where_no_admin_key_is_set(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    where = ServeSettings(port=0, grace_s=5, api_keys=("user",), adapters_folder=folder)
    with (
        kdn.open(base, config=settings(tmp_path), adapters={"qa": folder / "old"}) as opened,
        running(served(opened), where) as server,
    ):
        for refused in (load(server, "new", "new"), unload(server, "qa")):
            assert (refused.status_code, "serve.store_key" in refused.text) == (403, True)
        assert "qa" in names(server)


def test_the_admin_key_is_asked_for_where_one_is_set(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    where = ServeSettings(port=0, grace_s=5, api_keys=("user",), adapters_folder=folder)
    grants = (Grant("admin", "chief", admin=True),)
    with (
        kdn.open(base, config=settings(tmp_path)) as opened,
        running(served(opened), where, own_keys=grants) as server,
    ):
        assert load(server, "qa", "old").status_code == 403, "a user's key is not enough"
        server.http.headers["authorization"] = "Bearer wrong"
        assert load(server, "qa", "old").status_code == 401
        server.http.headers["authorization"] = "Bearer chief"
        assert load(server, "qa", "old").status_code == 200
        assert unload(server, "qa").status_code == 200
