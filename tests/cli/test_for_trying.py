"""The packaged model says what it is for, once an answer, and other models say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import Done, kdn


def asked(home: Path, *words: str) -> Done:
    home.mkdir(exist_ok=True)
    (home / "a.txt").write_text("The lock of the red door opens with the brass key.", "utf-8")
    kdn(home, "ingest", home / "a.txt", *words)
    return kdn(
        home,
        "ask",
        "What opens the lock?",
        "--max-tokens",
        "4",
        "--always",
        "--max-parts",
        "1",
        *words,
    )


def test_the_packaged_model_is_for_trying(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    done = asked(tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("smollm2-135m is small and for trying kdn") == 1
    assert "kdn models recommend" in done.err


def test_another_model_is_not(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    done = asked(tmp_path, "--model", str(tiny_model("llama", max_position_embeddings=2048)))
    assert done.code == 0, done.err
    assert "for trying" not in done.err
