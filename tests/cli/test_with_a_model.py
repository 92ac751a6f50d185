"""The command line with a tiny model: whole commands, from files to answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kdn.cli.demo import play
from kdn.cli.options import ModelChoice
from kdn.config import load_config
from kdn.errors import UnknownModel
from kdn.model import resolve
from tests.cli.program import finish, kdn, start

LOCKS = "The lock of the red door opens with the brass key. It hangs behind the clock.\n\n"
BOATS = "The boat leaves the harbour at nine. A ticket costs four crowns, children ride free.\n\n"


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def embedder() -> None:
    """Skips where the sentence embedder is not installed."""
    try:
        resolve("minilm-l6", Path("no-home"))
    except UnknownModel:
        pytest.skip("the embedder's weights are not installed")


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "locks.md").write_text(f"# Locks\n\n{LOCKS}")
    (folder / "boats.md").write_text(f"# Boats\n\n{BOATS}")
    return folder


def test_an_empty_library_says_what_to_do(tmp_path: Path, tiny: Path, embedder: None) -> None:
    done = kdn(tmp_path, "ask", "Where is the key?", "--model", tiny)
    assert done.code == 2
    assert "kdn ingest" in done.err


def test_ingest_then_ask_twice(tmp_path: Path, tiny: Path, papers: Path, embedder: None) -> None:
    first = kdn(tmp_path, "ingest", papers, "--model", tiny, "--json")
    assert first.code == 0
    assert "2 files" in first.err
    assert "of KV" in first.err
    assert len(first.json["added"]) == 2
    again = kdn(tmp_path, "ingest", papers, "--model", tiny, "--json").json
    assert (len(again["added"]), len(again["unchanged"])) == (0, 2)
    ask = ("ask", "Where is the brass key?", "--model", tiny, "--max-tokens", "4", "--json")
    cold, warm = kdn(tmp_path, *ask).json, kdn(tmp_path, *ask).json
    assert cold["usage"]["exact"] == 0
    assert warm["usage"]["exact"] > 100
    assert warm["usage"]["exact"] + warm["usage"]["recomputed"] == warm["usage"]["prompt_tokens"]
    assert warm["answer"] == cold["answer"]
    assert kdn(tmp_path, "store", "stat", "--json").json["blocks"] > 0
    said = kdn(tmp_path, *ask[:-1])
    assert "prompt tokens" in said.err
    assert "first token after" in said.err


def test_the_choice_is_explained(tmp_path: Path, tiny: Path, papers: Path, embedder: None) -> None:
    kdn(tmp_path, "ingest", papers, "--model", tiny)
    ask = ("ask", "Where is the brass key?", "--model", tiny, "--max-tokens", "3")
    chosen = kdn(tmp_path, *ask, "--json").json["configuration"]
    assert chosen["method"] in ("stuff", "map_rerank", "map_reduce")
    assert chosen["profile"]["source"] == "classifier"
    told = kdn(tmp_path, *ask, "--explain")
    assert told.code == 0
    assert "profile: " in told.err
    assert "choice: " in told.err
    assert "because: " in told.err
    quoted = kdn(tmp_path, *ask, "--method", "extract")
    assert "brass key" in quoted.out
    assert "no model was asked" in quoted.err
    for beside in (("--fast",), ("--max-parts", "2", "--fast")):
        quoted = kdn(tmp_path, *ask, *beside, "--method", "extract")
        assert "no model was asked" in quoted.err
    best = kdn(tmp_path, *ask, "--fast", "--quality", "best", "--json").json["configuration"]
    assert best["profile"] is not None, "it was chosen"
    plain = kdn(tmp_path, *ask, "--no-auto", "--json").json["configuration"]
    assert (plain["method"], plain["num_chunks"], plain["profile"]) == ("stuff", 1, None)
    wrong = kdn(tmp_path, *ask, "--quality", "cheap")
    assert wrong.code == 2
    assert "fast, balanced, best" in wrong.err


def test_a_fast_answer_blends_what_an_earlier_one_learned(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    """Two parts: the first is exact; the second was stored alone behind the prelude meanwhile."""
    kdn(tmp_path, "ingest", papers, "--model", tiny)
    ask = ("ask", "key and boat?", "--fast", "--model", tiny, "--max-tokens", "2")
    assert kdn(tmp_path, *ask, "--json").json["usage"]["blended"] == 0
    usage = kdn(tmp_path, *ask, "--json").json["usage"]
    assert usage["blended"] > 20
    assert usage["exact"] + usage["blended"] + usage["recomputed"] == usage["prompt_tokens"]
    assert "reused exactly" in kdn(tmp_path, *ask).err
    assert kdn(tmp_path, "store", "stat", "--json").json["blend"][0]["answers"] == 3


def test_words_are_stressed_and_what_that_did_is_told(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    kdn(tmp_path, "ingest", papers, "--model", tiny)
    ask = (
        "ask",
        "Where is the brass key?",
        "--model",
        tiny,
        "--max-tokens",
        "4",
        "--max-parts",
        "1",
    )
    plain = kdn(tmp_path, *ask, "--json").json
    marked = (*ask, "--stress", "brass key", "--mute", "the clock", "--steer-report")
    told = kdn(tmp_path, *marked, "--json").json["steering"]
    assert told["plain_text"] == plain["answer"]
    assert told["kl"] > 0
    assert "without steering" in kdn(tmp_path, *marked).err
    assert plain["steering"] is None
    for word in ("look", "look-always", "retrieved"):
        assert kdn(tmp_path, *ask, "--steer", word, "--json").code == 0
    wrong = kdn(tmp_path, *ask, "--stress", "silver key")
    assert (wrong.code, "'silver key' is not in any" in wrong.err) == (2, True)
    assert "leave out --stress" in kdn(tmp_path, *marked, "--steer", "look").err
    assert (
        "it can be look, look-always, retrieved, or a recipe"
        in kdn(tmp_path, *ask, "--steer", "loud").err
    )


def test_prefill_leaves_nothing_to_compute_but_the_question(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    assert kdn(tmp_path, "ingest", papers, "--model", tiny, "--prefill").code == 0
    asked = kdn(tmp_path, "ask", "Which boat?", "--model", tiny, "--max-tokens", "2", "--json")
    usage = asked.json["usage"]
    assert usage["recomputed"] < usage["prompt_tokens"] - len(BOATS)


def test_a_bad_file_is_named_and_the_others_go_in(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    (papers / "empty.md").write_text("")
    done = kdn(tmp_path, "ingest", papers, "--model", tiny, "--json")
    assert done.code == 0
    assert len(done.json["added"]) == 2
    assert "empty.md" in done.json["refused"][0]["path"]


def test_ctrl_c_stops_an_ingest_that_can_be_taken_up_again(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    for number in range(10):
        (papers / f"{number}.md").write_text(f"# Paper {number}\n\n{number} times: {LOCKS}")
    program = start(tmp_path, "ingest", papers, "--model", tiny, "--json")
    assert program.stderr is not None
    assert "12 files" in program.stderr.readline()  # from now on Ctrl-C is heard
    program.send_signal(signal.SIGINT)
    done = finish(program)
    assert done.code == 130
    assert "ingest again for the rest" in done.err
    assert done.json["cancelled"] is True
    finished = len(done.json["added"])
    rest = kdn(tmp_path, "ingest", papers, "--model", tiny, "--json").json
    assert (len(rest["unchanged"]), len(rest["added"])) == (finished, 12 - finished)


def test_a_chat_refuses_a_torn_schema_before_the_first_question(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type":')
    done = kdn(tmp_path, "chat", "--json-schema", tmp_path / "schema.json", typed="")
    assert done.code == 2
    assert "the JSON schema is no JSON" in done.err


def test_a_chat_goes_on_from_what_it_kept(tmp_path: Path, tiny: Path) -> None:
    chat = ("chat", "--model", tiny, "--max-tokens", "8", "--json")
    done = kdn(tmp_path, *chat, typed="Hello there\nAnd now?\n/new\nHello there\n/quit\nunheard\n")
    turns = done.json["turns"]
    assert [turn["question"] for turn in turns] == ["Hello there", "And now?", "Hello there"]
    first, second, restarted = (turn["usage"] for turn in turns)
    assert first["exact"] == 0
    assert second["exact"] >= first["prompt_tokens"]
    assert restarted["exact"] == first["prompt_tokens"] - 1
    assert turns[2]["answer"] == turns[0]["answer"]


def test_a_turn_that_fails_takes_none_before_it_away(tmp_path: Path, tiny: Path) -> None:
    chat = ("chat", "--model", tiny, "--max-tokens", "8", "--json")
    done = kdn(tmp_path, *chat, typed="Hello there\n" + "x" * 20_000 + "\nunheard\n")
    assert done.code == 2
    assert "the model's context 8192" in done.err
    assert [turn["question"] for turn in done.json["turns"]] == ["Hello there"]


def test_ctrl_c_ends_an_answer_with_one_sentence(tmp_path: Path, tiny: Path) -> None:
    program = start(tmp_path, "chat", "--model", tiny, "--max-tokens", "7000")
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("Talk for long\n")
    program.stdin.flush()
    assert program.stdout.read(1)  # the answer has begun
    program.send_signal(signal.SIGINT)
    done = finish(program)
    assert done.code == 130
    assert done.err.strip().endswith("what was finished before is kept")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_serve_tells_its_address_answers_and_keeps_what_it_computed(
    tmp_path: Path, tiny: Path, stop: signal.Signals, code: int
) -> None:
    program = start(tmp_path, "serve", "--model", tiny, "--port", "0", "--json")
    assert program.stdout is not None
    url = json.loads(program.stdout.readline())["url"]
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["prompt_tokens"] > 0
    program.send_signal(stop)
    done = finish(program)
    assert done.code == code
    assert "Traceback" not in done.err
    assert kdn(tmp_path, "store", "stat", "--json").json["tiers"]["disk"]["blocks"] > 0


def test_the_demo_asks_cold_warm_and_after_a_restart(
    tmp_path: Path, tiny: Path, papers: Path, embedder: None
) -> None:
    config = load_config({"PATH": os.environ["PATH"]}, home=tmp_path)
    questions = ("Where is the brass key?", "What costs a ticket?")
    asked = play(ModelChoice(str(tiny)), config, [papers], questions, 4, quiet=True)
    for one in asked:
        assert one.answers["warm"].usage.recomputed < one.answers["cold"].usage.recomputed
        assert one.answers["restart"].usage.recomputed == one.answers["warm"].usage.recomputed
        assert one.answers["cold"].text == one.answers["warm"].text == one.answers["restart"].text


def test_an_ingest_that_takes_nothing_in_has_failed(
    tmp_path: Path, tiny: Path, embedder: None
) -> None:
    """The broken file is named once, with one reason."""
    folder = tmp_path / "folder"
    folder.mkdir()
    done = kdn(tmp_path, "ingest", folder, "--model", tiny)
    assert done.code == 2
    assert "there are no files in it that kdn reads" in done.err
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 broken")
    done = kdn(tmp_path, "ingest", folder, "--model", tiny)
    assert done.code == 2
    assert "none of 1 file could be read" in done.err
    assert done.err.count("cannot be read as PDF") == 1
    (folder / "a.txt").write_text("Words.")
    (folder / "b.log").write_text("Noise.")
    options = ("--exclude", "*.log", "--model", tiny, "--json")
    done = kdn(tmp_path, "ingest", folder, *options)
    assert done.code == 0, done.err
    assert "1 file, " in done.err
    assert [Path(one).name for one in done.json["added"]] == ["a.txt"]
    assert kdn(tmp_path, "ingest", folder, *options).code == 0, "nothing new is no failure"
