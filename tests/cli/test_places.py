"""Places that cannot be written: each command that writes says so in one sentence, and ends with a code."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.cli.commands import explained
from kdn.cli.options import output_folder
from kdn.errors import BadInput
from tests.cli.program import Done, environment, kdn

TEXT = "The lock of the red door opens with the brass key. " * 6
ASK = ("--template", "{text}", "--choices", "Y,N")
USES_HOME: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "TEXT"),
    "store put": ("store", "put", "TEXT"),
    "ask": ("ask", "How is it opened?", "--always"),
    "rerank": ("rerank", "lock", "TEXT"),
    "label": ("label", "TABLE", *ASK, "--out", "OUT"),
    "serve": ("serve", "--port", "0"),
    "store stat": ("store", "stat"),
    "store export": ("store", "export", "OUT"),
    "node": ("node", "--port", "0"),
    "doctor": ("doctor",),
    "demo": ("demo", "--output", "OUT"),
    "steer fit": ("steer", "fit", "--data", "LINES", "--name", "brief"),
    "share profile": (
        "share",
        "profile",
        "--sender",
        "base",
        "--receiver",
        "base",
        "--data",
        "LINES",
    ),
    "store verify": ("store", "verify"),
}
WRITES_A_FILE: dict[str, tuple[str, ...]] = {
    "label": ("label", "TABLE", *ASK, "--out", "PLACE/o.csv"),
    "batch label": ("batch", "label", "TABLE", *ASK, "--out", "PLACE/o.csv"),
    "store export": ("store", "export", "PLACE/o.tar"),
    "bench --report": ("bench", "codecs", "--quick", "--report", "PLACE/report"),
    "bench --json": ("bench", "codecs", "--quick", "--json", "PLACE/o.json"),
    "net l4s simulate --plots": ("net", "l4s", "simulate", "--plots", "PLACE/plots"),
    "net l4s train": ("net", "l4s", "train", "--out", "PLACE/weights.npy"),
    "net rtc train": ("net", "rtc", "train", "--out", "PLACE/policies.npz"),
    "net rtc call": ("net", "rtc", "call", "TEXT", "--out", "PLACE/call"),
    "steer fit": ("steer", "fit", "--data", "LINES", "--out", "PLACE/recipe"),
    "steer show": ("steer", "show", "TEXT", "--recipe", "TEXT", "--html", "PLACE/page.html"),
    "share profile": (
        *("share", "profile", "--sender", "base", "--receiver", "base"),
        *("--data", "LINES", "--plot", "PLACE/frontier.svg"),
    ),
    "store simulate": ("store", "simulate", "--trace", "TEXT", "--plot", "PLACE/rates.svg"),
}
WITHOUT_MODEL = ("node", "doctor", "net ", "store stat", "store export", "store verify",
                 "store simulate")  # fmt: skip
LINE = '{"context": "A brass key.", "document": "A brass key.", "question": "Which?", "answer": "Brass."}'
Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tiny_model: Tiny) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


def unwritable() -> Path:
    """A folder in which nobody can make anything, not even root."""
    return Path("/sys") if sys.platform == "linux" else Path("/dev/fd")


def places(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "a-file").write_text("no folder", "utf-8")
    return {"a file": tmp_path / "a-file", "not writable": unwritable()}


def words(command: tuple[str, ...], tmp_path: Path, place: Path) -> list[str]:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    (tmp_path / "t.csv").write_text("text\nhello\n", "utf-8")
    (tmp_path / "lines.jsonl").write_text(LINE + "\n", "utf-8")
    known = {"TEXT": tmp_path / "a.txt", "TABLE": tmp_path / "t.csv", "OUT": tmp_path / "o.csv",
             "LINES": tmp_path / "lines.jsonl"}  # fmt: skip
    return [str(known.get(word, word)).replace("PLACE", str(place)) for word in command]


def is_one_sentence(done: Done) -> bool:
    said = [line for line in done.err.splitlines() if line.startswith("kdn: ")]
    return done.code in (1, 2) and len(said) == 1 and "Traceback" not in done.err


@pytest.mark.parametrize("name", USES_HOME)
def test_a_home_that_cannot_be(name: str, tiny: Path, tmp_path: Path) -> None:
    model = () if name.startswith(WITHOUT_MODEL) else ("--model", str(tiny))
    for what, place in places(tmp_path).items():
        done = kdn(place / "home", *words(USES_HOME[name], tmp_path, place), *model)
        assert is_one_sentence(done), (what, done)
        assert "home" in done.err
        assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("name", WRITES_A_FILE)
def test_an_output_that_cannot_be_is_told_before_any_work(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    model = () if name.startswith(WITHOUT_MODEL) else ("--model", str(tiny))
    for what, place in places(tmp_path).items():
        done = kdn(tmp_path / "home", *words(WRITES_A_FILE[name], tmp_path, place), *model)
        assert is_one_sentence(done), (what, done)
        assert done.code == 2, done.err
        assert str(place) in done.err
        assert not (tmp_path / "home" / "store").exists(), "nothing was opened"


@pytest.mark.parametrize("name", ["store put", "ingest", "label"])
def test_a_disk_that_fills_up(name: str, tiny_model: Tiny, tmp_path: Path) -> None:
    """No file may become longer than 200 kB; a block has more."""
    model = tiny_model("llama", max_position_embeddings=2048, num_hidden_layers=24)
    home = tmp_path / "home"
    if name == "ingest":
        pytest.importorskip("lancedb")
    command = words(USES_HOME[name], tmp_path, tmp_path)
    (tmp_path / "a.txt").write_text(TEXT * 2, "utf-8")
    limit = 200_000
    done = subprocess.run(
        [sys.executable, "-m", "kdn", *command, "--model", str(model)],
        env=environment(home), text=True, capture_output=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    if name == "store put":
        assert done.returncode == 1
        assert "could not be written to the disk tier" in done.stderr
        assert "free some space" in done.stderr
    elif name == "label":  # blocks are a help: the answers are what was asked for
        assert done.returncode == 0
        assert (tmp_path / "o.csv").read_text().startswith("text,label")
    assert all(path.stat().st_size <= limit for path in home.rglob("*") if path.is_file())


def test_errors_of_the_system_say_what_to_do() -> None:
    for number, advice in (
        (2, "name another"), (20, "name another"), (21, "name another"), (28, "free some space"),
        (30, "check its rights"), (5, "check the file"),
    ):  # fmt: skip
        said = explained(OSError(number, os.strerror(number), "place"))
        assert said.startswith("place: ")
        assert advice in said


def test_a_folder_to_write_into_may_be_missing(tmp_path: Path) -> None:
    assert output_folder(None) is None
    assert output_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadInput, match=r"a\.txt is a file; name a folder"):
        output_folder(tmp_path / "a.txt" / "b")
