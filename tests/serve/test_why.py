"""The server says where a prompt left what is stored: in the answer when asked, and afterwards by id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.clock import ManualClock, SystemClock
from kdn.config import load_config
from kdn.core import Finish, FinishReason, Prompt, Request, Role, Segment, Usage
from kdn.serve import ServeSettings, served
from kdn.serve.metrics import RecentRequests
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import LAYERS, point, tell
from tests.reuse.share.pairs import settings as share_settings
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

SETTINGS = ServeSettings(port=0, api_keys=("ONE", "TWO"))
RULES = "Answer briefly and cite the passage you used. "


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with (
        kdn.open(folder, config=config, dtype="float32") as opened,
        running(served(opened), SETTINGS, clock=SystemClock()) as server,
    ):
        yield server
        opened.check()


def chat(server: Running, day: str, key: str = "ONE", **more: Any) -> Any:
    body = {
        "messages": [
            {"role": "system", "content": f"Today is {day}. {RULES * 3}"},
            {"role": "user", "content": "How high do falcons nest?"},
        ],
        "max_tokens": 2,
        "kdn": {"why": True},
    } | more
    headers = {"authorization": f"Bearer {key}"}
    return server.http.post("/v1/chat/completions", json=body, headers=headers)


def look(server: Running, path: str, key: str = "ONE") -> Any:
    return server.http.get(path, headers={"authorization": f"Bearer {key}"})


def test_an_answer_tells_the_place_and_the_reason_when_asked(server: Running) -> None:
    assert "why" not in chat(server, "2026-11-01", kdn={}).json()["kdn"]
    told = chat(server, "2026-11-02").json()
    why = told["kdn"]["why"]
    assert why["reason"] == "changing_value"
    # "<|turn|>system\n" is 8 tokens, then one a character
    assert why["place"] == 8 + len("Today is 2026-11-0") == told["kdn"]["exact"]
    assert why["before"].endswith("2026-11-0")
    assert why["text"].startswith("2. Answer")
    assert why["stored_text"].startswith("1. Answer")
    assert why["advice"] == "docs/why-not.md#changing_value"


def test_a_stream_tells_it_at_its_end(server: Running) -> None:
    chat(server, "2026-11-03")
    lines = chat(server, "2026-11-04", stream=True).text.split("\n\n")
    last = json.loads(lines[-3].removeprefix("data: "))
    assert lines[-2] == "data: [DONE]"
    assert last["kdn"]["why"]["reason"] == "changing_value"


def test_a_request_is_told_of_afterwards_with_its_prompt_by_origin(server: Running) -> None:
    chat(server, "2026-11-05")
    answer = chat(server, "2026-11-06").json()
    found = look(server, f"/v1/kdn/requests/{answer['id']}?prompt=true").json()
    usage = answer["usage"]
    assert found["state"] == "ended"
    assert found["prompt_tokens"] == usage["prompt_tokens"] == found["exact"] + found["recomputed"]
    assert found["why"]["reason"] == "changing_value"
    assert found["total_ms"] >= found["ttft_ms"] >= found["queue_ms"] >= 0
    pieces = found["prompt"]
    assert sum(one["tokens"] for one in pieces) == usage["prompt_tokens"]
    assert {one["origin"] for one in pieces} == {"exact", "computed"}
    assert "".join(one["text"] for one in pieces).startswith("<|turn|>system\nToday is 2026-11-06")
    first = pieces[0]
    assert (first["origin"], first["tokens"]) == ("exact", found["exact"])
    assert look(server, "/v1/kdn/requests?form=csv").status_code == 400
    newest = look(server, "/v1/kdn/requests?limit=1").json()["data"]
    assert [one["id"] for one in newest] == [f"{answer['id']}-0"]


@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_what_a_sibling_read_is_a_piece_of_its_own(
    tiny_model: Callable[..., Path], tmp_path: Path, ratio: float
) -> None:
    """The whole system message, of which a quarter may be computed again; so, too, where it is the
    receiver's own by then."""
    folder = tiny_model("llama", num_hidden_layers=LAYERS, max_position_embeddings=1024)
    adapters = {"a": write_adapter(tmp_path / "a", 1, ("q_proj",))}
    config = share_settings(tmp_path / "home")
    with (
        kdn.open(folder, config=config, dtype="float32", adapters=adapters) as opened,
        running(served(opened), SETTINGS, clock=SystemClock()) as server,
    ):
        tell(opened, [point(ratio=ratio, work=0.35)], None, "a")
        chat(server, "2026-11-08")
        for _ in range(2):
            wishes = {"share": "best", "keep": "shared"}
            answer = chat(server, "2026-11-08", model="a", kdn=wishes).json()
            found = look(server, f"/v1/kdn/requests/{answer['id']}?prompt=true").json()
            assert found["shared"] == 175 - round(175 * ratio)
            pieces = [(one["origin"], one["tokens"]) for one in found["prompt"]]
            assert pieces == [("shared", 175), ("computed", 38)]


def test_a_request_of_another_key_is_one_that_never_was(server: Running) -> None:
    answer = chat(server, "2026-11-07").json()
    missing = look(server, "/v1/kdn/requests/nobody", "TWO")
    foreign = look(server, f"/v1/kdn/requests/{answer['id']}", "TWO")
    assert foreign.status_code == missing.status_code == 404
    wording = missing.json()["error"]["message"].replace("nobody", answer["id"])
    assert foreign.json()["error"]["message"] == wording
    listed = look(server, "/v1/kdn/requests", "TWO").json()["data"]
    assert answer["id"] not in {one["id"].removesuffix("-0") for one in listed}
    assert look(server, "/v1/kdn/requests", "WRONG").status_code == 401


def test_where_nothing_is_stored_nothing_is_explained() -> None:
    with closing(ScriptedService()) as service, running(service) as server:
        answer = server.http.post(
            "/v1/completions", json={"prompt": "Hi", "max_tokens": 3, "kdn": {"why": True}}
        ).json()
        assert "why" not in answer["kdn"]
        assert "why" not in server.http.get(f"/v1/kdn/requests/{answer['id']}").json()


def test_of_a_request_without_an_end_only_what_is_known_is_told() -> None:
    with closing(ScriptedService()) as service, running(service) as server:
        service.pause_at = 1
        body = {"prompt": "Hi", "max_tokens": 3, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            name = json.loads(next(lines).removeprefix("data: "))["id"]
            runs = server.http.get(f"/v1/kdn/requests/{name}?prompt=true").json()
            service.broken, service.pause_at = ValueError("out of memory"), None
            assert [line for line in lines if line][-1] == "data: [DONE]"
        failed = server.http.get(f"/v1/kdn/requests/{name}?prompt=true").json()
    assert [one["state"] for one in (runs, failed)] == ["running", "failed"]
    assert [one["prompt_tokens"] for one in (runs, failed)] == [2, 2]
    assert not any("prompt" in one for one in (runs, failed))


def _request(name: str, num_tokens: int) -> Request:
    return Request(name, Prompt((Segment(Role.QUESTION, tuple(range(num_tokens))),)))


def test_no_more_requests_are_remembered_than_there_is_room_for() -> None:
    clock = ManualClock()
    recent = RecentRequests(clock, most=3, most_tokens=100)
    for number in range(4):
        recent.begin(_request(f"r{number}-0", 10), "me")
    assert [one.request.id for one in recent.all()] == ["r1-0", "r2-0", "r3-0"]
    recent.begin(_request("long-0", 500), "me")
    assert [one.request.id for one in recent.all()] == ["long-0"], "the last one always stays"
    assert recent.get("r3") is None
    found = recent.get("long")
    assert found is not None
    clock.advance(2)
    recent.end(found, Finish(FinishReason.STOP, Usage(500, 1)))
    assert found.ended_s == found.began_s + 2
