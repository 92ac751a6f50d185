"""kdn steer with a tiny model: a recipe is fitted, shown, and used for texts that are stored with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdn import open as opened
from kdn.reuse.steer import SteerRecipe
from tests.cli.program import kdn

TEXT = "The lock of the red door opens with the brass key. It hangs behind the clock in the hall.\n"


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    asked = [("Which door?", "red"), ("Which key?", "brass")]
    file = tmp_path / "questions.jsonl"
    lines = [{"document": TEXT, "question": q, "answer": a} for q, a in asked]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_a_recipe_is_fitted_shown_and_used(tmp_path: Path, tiny: Path, data: Path) -> None:
    recipe, text = tmp_path / "recipe.json", tmp_path / "door.txt"
    text.write_text(TEXT)
    fitted = kdn(
        tmp_path, "steer", "fit", "--data", data, "--out", recipe, "--model", tiny, "--json"
    )
    assert fitted.code == 0, fitted.err
    assert "plain: NLL" in fitted.err
    assert fitted.json["questions"] == 2
    made = SteerRecipe.decode(recipe.read_bytes(), "recipe")

    loud = tmp_path / "loud.json"
    loud.write_bytes(replace(made, share=0.5, combine="union", layers=None).encode())
    shown = kdn(tmp_path, "steer", "show", text, "--recipe", loud, "--model", tiny)
    assert "tokens are chosen in some layer" in shown.out
    assert "[" in shown.out
    page = tmp_path / "door.html"
    written = kdn(
        tmp_path, "steer", "show", text, "--recipe", loud, "--html", page, "--model", tiny, "--json"
    )
    assert written.json["chosen"] > 0
    assert "<mark" in page.read_text()
    assert "<script" not in page.read_text()

    named = kdn(
        tmp_path, "steer", "fit", "--data", data, "--name", "mine", "--model", tiny, "--json"
    )
    assert named.code == 0, named.err
    assert "give one of them" in kdn(tmp_path, "steer", "fit", "--data", data).err
    bad = kdn(tmp_path, "steer", "fit", "--data", data, "--name", "../x")
    assert "can be no recipe's name" in bad.err
    assert (tmp_path / "steer" / "mine.json").is_file()

    put = kdn(tmp_path, "store", "put", text, "--steer", loud, "--model", tiny, "--json")
    assert put.code == 0, put.err
    assert put.json["files"][0]["tokens"] > 20
    found = kdn(tmp_path, "store", "lookup", text, "--model", tiny, "--json").json
    assert found["files"][0]["hit_tokens"] == 0, "nobody without the recipe meets it"


def test_a_recipe_of_another_model_and_what_is_none_are_refused(
    tmp_path: Path, tiny: Path, data: Path
) -> None:
    text, wrong = tmp_path / "door.txt", tmp_path / "wrong.json"
    text.write_text(TEXT)
    wrong.write_bytes(SteerRecipe("other-model").encode())
    refused = kdn(tmp_path, "store", "put", text, "--steer", wrong, "--model", tiny)
    assert refused.code == 2
    assert "made for the model other-model" in refused.err
    wrong.write_text("{}")
    assert "is no steering recipe" in kdn(tmp_path, "steer", "show", text, "--recipe", wrong).err
    data.write_text('{"question": "?"}')
    again = kdn(tmp_path, "steer", "fit", "--data", data, "--out", wrong, "--model", tiny)
    assert "line 1: Object missing required field `document`" in again.err


def test_documents_that_a_recipe_cannot_steer_are_in_and_told(tmp_path: Path, tiny: Path) -> None:
    """The recipe's prompt alone is longer than the context of 2,048 tokens."""
    text, long = tmp_path / "door.txt", tmp_path / "long.json"
    text.write_text(TEXT)
    with opened(tiny, home=tmp_path) as k:
        recipe = SteerRecipe(k.model.fingerprints.of(None), prompts=("p", "p" * 3000))
    long.write_bytes(recipe.encode())
    done = kdn(tmp_path, "ingest", text, "--steer", long, "--model", tiny, "--json")
    assert done.code == 2
    assert "the model's context 2048" in done.err
    assert done.json["added"] == [str(text)]


def test_a_recipe_that_is_kept_by_name_steers_texts_beforehand(tmp_path: Path, tiny: Path) -> None:
    """As it does in `kdn ask`, whatever folder has the name too."""
    text, kept = tmp_path / "door.txt", tmp_path / "steer" / "mine.json"
    text.write_text(TEXT)
    kept.parent.mkdir()
    with opened(tiny, home=tmp_path) as k:
        kept.write_bytes(SteerRecipe(k.model.fingerprints.of(None)).encode())
    for command in (
        ("store", "put", text, "--steer"),
        ("ingest", text, "--steer"),
        ("steer", "show", text, "--recipe"),
    ):
        done = kdn(tmp_path, *command, "mine", "--model", tiny, "--json")
        assert done.code == 0, done.err
        for wrong in ("yours", str(kept.parent)):
            refused = kdn(tmp_path, *command, wrong, "--model", tiny)
            assert refused.code == 2
            assert refused.err.startswith(f"kdn: {wrong!r} is neither a recipe's file nor")
            assert refused.err.endswith("are: mine\n")
