"""Files that hold nothing of use: each command that reads one says so in one sentence and fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import Done, kdn

PROFILE = ("share", "profile", "--sender", "base", "--receiver", "base", "--data", "FILE")
TRAIN = ("net", "l4s", "train", "--flows", "2", "--steps", "1", "--out", "OUT")
READS: dict[str, tuple[str, ...]] = {
    "rerank": ("rerank", "lock", "FILE"),
    "rerank --documents": ("rerank", "lock", "--documents", "FILE"),
    "rerank --template": ("rerank", "lock", "TEXT", "--template", "FILE.toml"),
    "label": ("label", "FILE.csv", "-t", "{text}", "-c", "Y,N", "--out", "OUT"),
    "steer fit": ("steer", "fit", "--data", "FILE", "--out", "OUT"),
    "steer show": ("steer", "show", "TEXT", "--recipe", "FILE"),
    "share profile": PROFILE,
    "store put": ("store", "put", "FILE"),
    "store put --steer": ("store", "put", "TEXT", "--steer", "FILE"),
    "store lookup": ("store", "lookup", "FILE"),
    "store why": ("store", "why", "FILE.json"),
    "store import": ("store", "import", "FILE"),
    "store simulate": ("store", "simulate", "--trace", "FILE"),
    "cost trace": ("cost", "trace", "--trace", "FILE"),
    "net l4s simulate": ("net", "l4s", "simulate", "--seconds", "2", "--link", "FILE"),
    "net l4s train": (*TRAIN, "--start", "FILE"),
    "net rtc call": ("net", "rtc", "call", "FILE", "--out", "FOLDER"),
    "net rtc call --link": ("net", "rtc", "call", "TEXT", "--link", "FILE", "--out", "FOLDER"),
    "net rtc call --policies": ("net", "rtc", "call", "TEXT", "--policies", "FILE", "--out", "FOLDER"),
    "net rtc eval --data": ("net", "rtc", "eval", "--data", "FILE"),
    "net rtc eval --policies": ("net", "rtc", "eval", "--policies", "FILE"),
}  # fmt: skip
WITH_MODEL = ("rerank", "label", "steer", "share", "store put", "store lookup", "store why")
CONTENTS = {"empty": b"", "binary": bytes(range(256)) * 8, "without a row": b"\n\n"}


def files(folder: Path, suffix: str) -> dict[str, Path]:
    made = {"missing": folder / f"missing{suffix}", "a folder": folder / f"folder{suffix}"}
    made["a folder"].mkdir()
    for name, content in CONTENTS.items():
        made[name] = folder / f"{name.replace(' ', '-')}{suffix}"
        made[name].write_bytes(content)
    return made


def is_refused(done: Done) -> bool:
    """By one sentence, of kdn or of the reader of its options, and nothing on standard output."""
    said = [one for one in done.err.splitlines() if one.startswith(("kdn: ", "Error: "))]
    return done.code in (1, 2) and len(said) == 1 and not done.out and "Traceback" not in done.err


@pytest.mark.parametrize("name", READS)
def test_a_file_of_no_use_is_one_sentence(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("The lock of the red door opens with the brass key. " * 6, "utf-8")
    command = list(READS[name])
    if name.startswith(WITH_MODEL):
        command += ["--model", str(tiny_model("llama", max_position_embeddings=2048))]
    (place,) = [number for number, word in enumerate(command) if word.startswith("FILE")]
    known = {"TEXT": str(text), "OUT": str(out), "FOLDER": str(tmp_path / "made")}
    bad = tmp_path / "bad"
    bad.mkdir()
    for what, file in files(bad, command[place].removeprefix("FILE")).items():
        words = [str(file) if n == place else known.get(w, w) for n, w in enumerate(command)]
        done = kdn(tmp_path / "home", *words)
        assert is_refused(done), (what, done)
        assert not out.exists()
