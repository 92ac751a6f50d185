"""kdn rerank as a program, with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.cli.options import ModelChoice
from kdn.errors import UnknownModel
from kdn.model import resolve
from tests.cli.program import kdn


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


def test_files_and_lines_are_ranked_and_the_next_query_reuses_them(
    tmp_path: Path, tiny: Path
) -> None:
    file = tmp_path / "cat.txt"
    file.write_text("The cat sat on the mat.", "utf-8")
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"id": "rain", "text": "It rains."}\n"Stones."\n\nnot json\n', "utf-8")
    options = ("--documents", lines, "--model", tiny, "--dtype", "float32", "--json")
    first = kdn(tmp_path, "rerank", "Where is the cat?", file, *options)
    assert first.code == 0, first.err
    found = first.json
    names = {str(file), "rain", f"{lines}:2", f"{lines}:4"}
    assert {one["name"] for one in found["results"]} == names
    assert [o["score"] for o in found["results"]] == sorted(
        (o["score"] for o in found["results"]), reverse=True
    )
    again = kdn(tmp_path, "rerank", "And the mat?", file, *options, "--top-n", "2").json
    assert len(again["results"]) == 2
    assert again["cached_tokens"] > found["cached_tokens"]
    with ModelChoice(str(tiny), tmp_path, dtype="float32").open() as opened:
        texts = [file.read_text("utf-8"), "It rains.", "Stones.", "not json"]
        expected = opened.rerank("Where is the cat?", texts)
    assert [one["index"] for one in found["results"]] == [one.index for one in expected]


def test_documents_without_text_are_told_of_and_all_of_them_refused(
    tmp_path: Path, tiny: Path
) -> None:
    full, empty = tmp_path / "full.txt", tmp_path / "empty.txt"
    full.write_text("The cat sat on the mat.", "utf-8")
    empty.write_text(" \n", "utf-8")
    done = kdn(tmp_path, "rerank", "Where is the cat?", empty, full, "--model", tiny, "--json")
    assert [(one["index"], one["log_odds"]) for one in done.json["results"]][1] == (0, None)
    assert f"no text in {empty}: ranked last, with score 0" in done.err
    (tmp_path / "blank.jsonl").write_text('""\n{"id": "b", "text": ""}\n', "utf-8")
    refused = kdn(tmp_path, "rerank", "q", empty, "-d", tmp_path / "blank.jsonl", "--model", tiny)
    named = f"{empty}, {tmp_path / 'blank.jsonl'}:1, b"
    assert (refused.code, refused.out) == (2, "")
    assert f"there is nothing to rank: no text in {named}" in refused.err


def test_a_template_of_ones_own_says_that_its_blocks_are_its_own(
    tmp_path: Path, tiny: Path
) -> None:
    (tmp_path / "t.toml").write_text(
        'document_first = "{document} ? {query}"\nyes = "Y"\nno = "N"\n', "utf-8"
    )
    (tmp_path / "a.txt").write_text("a text", "utf-8")
    done = kdn(
        tmp_path, "rerank", "why", tmp_path / "a.txt", "--model", tiny,
        "--template", tmp_path / "t.toml",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "serve the template t alone" in done.err
    assert "a text" in done.out


def test_nothing_to_rank_is_said(tmp_path: Path, tiny: Path) -> None:
    done = kdn(tmp_path, "rerank", "why", "--model", tiny)
    assert done.code == 2
    assert "nothing to rank" in done.err
    (tmp_path / "bad.jsonl").write_text(json.dumps({"body": "x"}), "utf-8")
    done = kdn(tmp_path, "rerank", "why", "--documents", tmp_path / "bad.jsonl", "--model", tiny)
    assert done.code == 2
    assert "has a `text`" in done.err
    for line, said in (
        ('{"text": NaN}', "no-text.jsonl:2: NaN is no number in JSON"),
        ('{"text": "a", "text": "b"}', "no-text.jsonl:2: the key 'text' stands twice"),
        ("[" * 100_000, "no-text.jsonl:2: no JSON that is read"),
    ):
        (tmp_path / "no-text.jsonl").write_text(f"fine\n{line}\n", "utf-8")
        done = kdn(tmp_path, "rerank", "why", "-d", tmp_path / "no-text.jsonl", "--model", tiny)
        assert (done.code, said in done.err) == (2, True), done.err


def test_documents_ingested_for_ranking_are_not_computed_by_the_answer(
    tmp_path: Path, tiny: Path
) -> None:
    try:
        resolve("minilm-l6", Path("no-home"))
    except UnknownModel:
        pytest.skip("the embedder's weights are not installed")
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "locks.md").write_text("# Locks\n\nThe red door opens with the brass key.\n", "utf-8")
    (papers / "boats.md").write_text("# Boats\n\nThe boat leaves the harbour at nine.\n", "utf-8")
    taken = kdn(tmp_path, "ingest", papers, "--rerank", "--model", tiny)
    assert taken.code == 0, taken.err
    assert "tokens" in taken.err
    assert "answers use the same KV" in taken.err
    asked = ("Which key?", "--model", tiny, "--max-tokens", "2", "--json")
    answer = kdn(tmp_path, "ask", *asked, "--rerank", "2")
    assert answer.code == 0, answer.err
    usage = answer.json["usage"]
    assert usage["exact"] > len("The red door opens")


def test_the_reranker_that_comes_with_kdn_ranks_by_default(smollm2: Path, tmp_path: Path) -> None:
    """It is the default for its model, in the layout that it was trained for."""
    for name, text in (("a", "Paris is the capital of France."), ("b", "Berlin is a capital.")):
        (tmp_path / name).write_text(text)
    files = (tmp_path / "a", tmp_path / "b")
    asked = ("rerank", "Which city does Germany have as its capital?", *files, "--json")
    found = kdn(tmp_path / "home", *asked)
    assert [Path(one["name"]).name for one in found.json["results"]] == ["b", "a"]
    assert "ranked by the adapter document-first of smollm2-135m" in found.err
    named = kdn(tmp_path / "home", *asked, "--adapter", "document-first").json
    assert named["results"] == found.json["results"]
    plain = kdn(tmp_path / "home", *asked, "--adapter", "none")
    assert plain.json["results"][0]["log_odds"] != found.json["results"][0]["log_odds"]
    assert "ranked by" not in plain.err
    wrong = kdn(tmp_path / "home", *asked, "--adapter", "documents-first")
    assert (wrong.code, "document-first" in wrong.err) == (2, True)


def test_a_text_is_the_same_with_and_without_a_mark(tmp_path: Path, tiny: Path) -> None:
    """Also from standard input, and a line of JSON may hold U+2028."""
    (tmp_path / "plain.txt").write_bytes(b"one\ntwo")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "lines.jsonl").write_text('{"text":"one\u2028two"}\n', "utf-8")
    files = (tmp_path / "plain.txt", tmp_path / "marked.txt")
    done = kdn(
        tmp_path, "rerank", "why", *files, "-d", tmp_path / "lines.jsonl", "--model", tiny, "--json"
    )
    scores = {one["index"]: one["score"] for one in done.json["results"]}
    assert len(scores) == 3
    assert scores[0] == scores[1]
    typed = kdn(
        tmp_path, "rerank", "why", "-d", "-", "--model", tiny, "--json", typed="\ufeffa\r\nb\r\n"
    )
    assert [one["name"] for one in typed.json["results"]] in (["-:1", "-:2"], ["-:2", "-:1"])
