"""One-token jobs on a real kdn server: what it says is what the engine behind it says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import kdn
from kdn.errors import BadConfig, BadInput, PromptTooLong, UnknownModel, Unreachable
from kdn.model import Document, Message
from kdn.rank import Conversation
from kdn.scale.remote import JsonClient, RemoteEngine
from tests.cli.program import kdn as run
from tests.scale.served import served

WORDS = ["Yes", "No", "Maybe"]
TEXTS = ["The ferry leaves at nine.", "", "Bread needs salt.", "The ferry leaves at nine."]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[str]:
    exact = ("--dtype", "float32")
    with served(tmp_path_factory.mktemp("home"), model, options=exact) as [(address, _)]:
        yield address


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[RemoteEngine]:
    with RemoteEngine(JsonClient(url)) as opened:
        yield opened


def asked(text: str) -> Conversation:
    return Conversation((Message("user", text),))


def test_probabilities_are_those_of_the_engine_behind_the_server(
    engine: RemoteEngine, model: Path, tmp_path: Path
) -> None:
    questions = [asked(f"Is {number} a prime?") for number in range(5)]
    found = list(engine.ask_each(questions, engine.choices(WORDS)))
    with kdn.open(model, home=tmp_path, dtype="float32") as own:
        expected = own.scoring.ask(questions, own.scoring.choices(WORDS))
    for remote, local in zip(found, expected, strict=True):
        assert not isinstance(remote, PromptTooLong)
        assert remote.names == tuple(WORDS)
        assert remote.probabilities == pytest.approx(local.probabilities, rel=1e-4)
        assert remote.usage.prompt_tokens == local.usage.prompt_tokens


def test_another_model_of_the_same_name_and_shape_is_noticed(
    url: str, engine: RemoteEngine, model: Path, tmp_path: Path
) -> None:
    with kdn.open(model, home=tmp_path, dtype="float32") as own:
        told = own.model.decoder.answers_digest(None)
    assert engine.fingerprint == f"{url}/{engine.model} {told}"


def test_a_ranking_asks_each_text_once_and_reuses_it_for_the_next_query(
    engine: RemoteEngine,
) -> None:
    text = "The harbour was built in stone by people of the coast. " * 20
    first = engine.rerank("When was it built?", [*TEXTS, text])
    assert {one.index for one in first} == {0, 1, 2, 3, 4}
    assert first[4].index == 1, "an empty text stands last"
    odds = {one.index: one.log_odds for one in first}
    assert odds[0] == odds[3]
    again = engine.rerank("Who built it?", [text], top_n=1)
    assert again.cached_tokens > 0.8 * again.prompt_tokens


def test_a_template_with_its_own_words_goes_as_plain_text(
    engine: RemoteEngine, tmp_path: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text('document_first = "Text: {document} Asked: {query} {instruction}"\n')
    found = engine.rerank("ferry", ["The ferry leaves.", "Bread."], template=str(file))
    assert len(found) == 2
    with pytest.raises(BadInput, match="scores by one logit, which servers do not tell"):
        engine.rerank("ferry", ["a"], template="bge-reranker-v2-gemma")


def test_a_document_stands_before_the_question(engine: RemoteEngine) -> None:
    joined = asked("A text about tides.\n\nIs it wet?")
    split = Conversation((Message("user", "Is it wet?"),), (Document(None, "A text about tides."),))
    one, other = engine.ask_each([joined, split], engine.choices(WORDS))
    assert not isinstance(one, PromptTooLong)
    assert not isinstance(other, PromptTooLong)
    assert one.probabilities == other.probabilities


def test_a_text_that_is_too_long_is_told_of_in_its_place(engine: RemoteEngine) -> None:
    answers = list(engine.ask_each([asked("a " * 3000), asked("b")], engine.choices(WORDS)))
    assert isinstance(answers[0], PromptTooLong)
    assert "context" in str(answers[0])
    assert not isinstance(answers[1], PromptTooLong)


def test_the_commands_take_a_server_s_address(url: str, tmp_path: Path) -> None:
    table, out = tmp_path / "rows.csv", tmp_path / "labels.csv"
    table.write_text("text\nA ferry\nA loaf\n" + "x" * 5000 + "\n")
    done = run(
        *(tmp_path, "label", table, "-t", "Is it a ship? {text}", "-c", "Yes,No", "-o", out),
        *("--engine", url, "--json"),
    )
    assert done.code == 0, done.err
    assert done.json["rows"] == 3
    assert [one["row"] for one in done.json["refused"]] == [3]
    assert len(out.read_text().splitlines()) == 4
    text = tmp_path / "a.txt"
    text.write_text("A ferry")
    ranked = run(tmp_path, "rerank", "ship", text, "--engine", url, "--json")
    assert [one["index"] for one in ranked.json["results"]] == [0]
    refused = run(tmp_path, "rerank", "ship", text, "--engine", url, "--quantization", "int8")
    assert refused.code == 2
    assert "--quantization is for a model of this machine" in refused.err


def test_a_wrong_address_or_model_is_one_sentence(url: str, engine: RemoteEngine) -> None:
    with pytest.raises(BadConfig, match="'localhost:80'; write http://HOST:PORT"):
        JsonClient("localhost:80")
    wrong = pytest.raises(UnknownModel, match=f"has no model 'gpt'; it has {engine.model}")
    with JsonClient(url) as client, wrong:
        RemoteEngine(client, "gpt")
    waits: list[float] = []
    with pytest.raises(Unreachable, match=r"did not answer /v1/models in 3 tries: .*refused"):
        RemoteEngine(JsonClient("http://127.0.0.1:9", tries=3, sleep=waits.append))
    assert waits == [0.2, 0.4]


def test_a_busy_server_is_asked_again() -> None:
    class Busy(BaseHTTPRequestHandler):
        answers: list[int]

        def do_GET(self) -> None:
            self.send_response(self.answers.pop(0))
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    Busy.answers = [503, 429, 200]
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        waits: list[float] = []
        url = f"http://127.0.0.1:{server.server_port}"
        with JsonClient(url, sleep=waits.append) as client:
            assert client.get("/").status == 200
        server.shutdown()
        thread.join()
    assert waits == [0.2, 0.4]
