"""kdn share: a pair is profiled and listed; what cannot be shared is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import kdn
from tests.engine.test_company import weaken, write_adapter

LINES = [
    {
        "context": f"Lamp {number} is lit at {number} in the evening.",
        "question": f"When is lamp {number} lit?",
        "answer": str(number),
    }
    for number in range(3)
]


@pytest.fixture(scope="module")
def pair(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A base, an adapter on it, and three contexts."""
    place = tmp_path_factory.mktemp("pair")
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, LINES)), "utf-8")
    base = tiny_model("llama", max_position_embeddings=1024)
    adapter = write_adapter(place / "a", 1, ("q_proj", "v_proj"))
    weaken(adapter)
    return base, adapter, place / "data.jsonl"


def options(pair: tuple[Path, Path, Path], **changed: Any) -> list[str]:
    """Of `kdn share profile`, as base to adapter."""
    base, adapter, data = pair
    said = {"sender": "base", "receiver": "a", "model": base, "data": data, "step": 1, **changed}
    given = [part for name, value in said.items() for part in (f"--{name}", str(value))]
    return ["share", "profile", *given, "--adapter", f"a={adapter}", "--dtype", "float32"]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A profile without its times: those of two runs differ."""
    points = [{**point, "times": [at for at, _ in point["times"]]} for point in record["points"]]
    return {**record, "points": points, "prefill_times": [at for at, _ in record["prefill_times"]]}


def test_a_profile_is_measured_kept_and_listed(
    pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Two layers: reuse, two groups of one layer, and four shares of rows; too little for a map."""
    done = kdn(tmp_path, *options(pair, contexts=2), "--json")
    assert done.code == 0, done.err
    record = done.json
    assert (record["contexts"], record["num_layers"], len(record["points"])) == (2, 2, 7)
    assert not any(point["mapped"] for point in record["points"])
    assert kdn(tmp_path, "share", "list", "--json").json == {"pairs": [record]}
    shown = kdn(tmp_path, "share", "list")
    assert "a over KV of base: 2 contexts" in shown.out + shown.err
    again = kdn(tmp_path, *options(pair, contexts=2), "--json", "--plot", tmp_path / "p.svg")
    assert untimed(again.json) == untimed(record), "what was judged stays, times are taken again"
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")


def test_without_profiles_the_list_says_how_to_make_one(tmp_path: Path) -> None:
    assert kdn(tmp_path, "share", "list", "--json").json == {"pairs": []}
    assert "kdn share profile" in kdn(tmp_path, "share", "list").err


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"receiver": "nobody"}, "nobody"),
        ({"sender": "nobody"}, "nobody"),
    ],
)
def test_names_that_there_are_not_are_refused(
    pair: tuple[Path, Path, Path], tmp_path: Path, changed: dict[str, str], sentence: str
) -> None:
    done = kdn(tmp_path, *options(pair, **changed))
    assert done.code in (1, 2)
    assert sentence in done.err


def test_a_sender_of_another_shape_is_refused_with_the_reason(
    pair: tuple[Path, Path, Path], tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    other = tiny_model("llama", num_hidden_layers=3)
    done = kdn(tmp_path, *options(pair, sender=other))
    assert done.code == 2
    assert "models of different shapes share nothing" in done.err


def test_data_that_is_none_is_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    empty, wrong = tmp_path / "empty.jsonl", tmp_path / "wrong.jsonl"
    empty.write_text("", "utf-8")
    wrong.write_text('{"context": 1}\n', "utf-8")
    for path, sentence in ((empty, "is empty"), (wrong, "line 1")):
        done = kdn(tmp_path, *options(pair, data=path))
        assert done.code == 2
        assert sentence in done.err
