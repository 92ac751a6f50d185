"""kdn store why: a file before it is sent, and a request that a server remembers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kdn
from kdn.cli import app
from kdn.clock import SystemClock
from kdn.config import load_config
from kdn.reuse.why import MissReason
from kdn.reuse.why.reasons import SENTENCES
from kdn.serve import served
from tests.serve.running import running

ROOT = Path(__file__).parents[2]


def body(day: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": f"Today is {day}. Answer briefly and cite your source."},
            {"role": "user", "content": "How high do falcons nest?"},
        ]
    }


def why(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["store", "why", *arguments])
    return done if done.exit_code else done.stdout


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


def test_a_body_and_an_answer_are_explained_alike(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("KDN_ENGINE_DTYPE", "float32")
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=home)
    with (
        kdn.open(model, config=config, dtype="float32") as k,
        running(served(k), clock=SystemClock()) as server,
    ):
        for day in ("2026-11-27", "2026-11-28"):
            chat = body(day) | {"max_tokens": 2}
            answer = server.http.post("/v1/chat/completions", json=chat).json()
        told = json.loads(why("--request", answer["id"], "--url", server.url, "--json"))
        shown = why("--request", answer["id"], "--url", server.url)
        missing = why("--request", "nobody", "--url", server.url)
        k.store.flush()
    assert told["reason"] == "changing_value"
    assert told["detail"] == "2026-11-27. became 2026-11-28."
    assert "here:     8. Answer briefly" in shown
    assert "stored:   7. Answer briefly" in shown
    assert missing.exit_code == 2
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(body("2026-11-29")))
    foreseen = json.loads(
        why(str(file), "--model", str(model), "--home", str(home), "--dtype", "float32", "--json")
    )
    assert foreseen["reason"] == "changing_value"
    assert foreseen["place"] == told["place"] == foreseen["reused"]


def test_what_cannot_be_asked_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "no.json"
    file.write_text("{}")
    assert why().exit_code == 2
    assert why(str(file), "--request", "x").exit_code == 2
    assert why("--request", "x", "--url", "http://127.0.0.1:9").exit_code == 1
    for address in ("ftp://here", "here", "http://127.0.0.1:port", "http://[half", "http://:80"):
        assert why("--request", "x", "--url", address).exit_code == 2


class Stranger(BaseHTTPRequestHandler):
    """A server of somebody else: pages for people at every address, fewer at /v1/kdn/requests/404."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path.endswith("404") else 200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def test_a_server_of_another_kind_is_told_in_one_sentence() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        for request in ("404", "some"):
            assert why("--request", request, "--url", url).exit_code == 2
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_every_reason_has_its_sentence_and_its_advice() -> None:
    page = (ROOT / "docs" / "why-not.md").read_text("utf-8")
    chapters = {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")}
    assert chapters == {str(one) for one in MissReason} == set(SENTENCES)
