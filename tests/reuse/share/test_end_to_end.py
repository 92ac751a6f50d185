"""Sharing from end to end: siblings are profiled, served in one server, and one reads the other's KV."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdn
from kdn.calibration.share_profile import PairSide, ShareProfiler, default_choices
from kdn.calibration.share_run import ShareQuestion, item_of
from kdn.machine.text import read_json_lines
from kdn.reuse.share.pairs import PairRecord
from kdn.serve import served
from tests.cli.program import kdn as program
from tests.reuse.share.pairs import LAYERS, settings
from tests.serve.running import Running, running

WORDS = ["lamp", "gate", "river", "clerk", "paper", "north", "seven", "green", "stone", "letter"]


@dataclass(frozen=True)
class Siblings:
    """A base, a fine-tune of it, a stranger of the same shape, and contexts to profile on."""

    base: Path
    tuned: Path
    stranger: Path
    data: Path

    def profile(self, home: Path, sender: Path, receiver: Path) -> Any:
        """`kdn share profile`, as it ended."""
        said = {"sender": sender, "receiver": "base", "model": receiver, "data": self.data}
        given = [str(part) for name, one in said.items() for part in (f"--{name}", one)]
        measured = ["--contexts", "4", "--step", "2", "--dtype", "float32", "--json"]
        return program(home, "share", "profile", *given, *measured)


def fine_tuned(base: Path, folder: Path, strength: float) -> Path:
    """The base with a little noise on every matrix: what a short training would leave."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    moved = {
        name: one + strength * one.std() * torch.randn(one.shape, generator=generator)
        if one.dim() == 2
        else one
        for name, one in weights.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def siblings(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    shape = {"num_hidden_layers": LAYERS, "max_position_embeddings": 2048}
    place = tmp_path_factory.mktemp("siblings")
    base = fine_tuned(tiny_model("llama", **shape), place / "base", 0.0)
    tuned = fine_tuned(base, place / "tuned", 0.002)
    stranger = fine_tuned(tiny_model("llama", seed=7, **shape), place / "stranger", 0.0)
    draw = random.Random(3)
    lines = [
        {"context": " ".join(draw.choices(WORDS, k=24)), "question": "What?", "answer": word}
        for word in WORDS[:4]
    ]
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return Siblings(base, tuned, stranger, place / "data.jsonl")


@pytest.fixture(scope="module")
def home(siblings: Siblings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the base was profiled as the sender of the fine-tune."""
    home = tmp_path_factory.mktemp("home")
    done = siblings.profile(home, siblings.base, siblings.tuned)
    assert done.code == 0, done.err
    reuse = next(one for one in done.json["points"] if one["first"] is None and not one["ratio"])
    assert 0 < reuse["kl"] < 0.05, "a sibling, and not the model itself"
    for path in home.glob("share/*/profile.json"):  # on a busy machine no way may be worth its time
        record = msgspec.json.decode(path.read_bytes(), type=PairRecord)
        path.write_bytes(msgspec.json.encode(record.without_times()))
    return home


@pytest.fixture
def server(siblings: Siblings, home: Path) -> Iterator[Running]:
    """Both models in one server, and nothing said about sharing but the profile."""
    folders = {"planner": siblings.base, "worker": siblings.tuned}
    with kdn.open_models(folders, config=settings(home), dtype="float32") as models:
        first, second = (served(one) for one in models.values())
        with running(first, others=[second]) as found:
            yield found
        for one in models.values():
            one.check()


def chat(server: Running, model: str, text: str, share: str | None = None) -> dict[str, Any]:
    """What became of the prompt."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Which?"}],
        "documents": [{"text": text}],
        "max_tokens": 4,
        "cache_salt": "",
    }
    options = {} if share is None else {"kdn": {"share": share}}
    response: httpx.Response = server.http.post("/v1/chat/completions", json=body | options)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    told: dict[str, Any] = found["kdn"] | {"prompt_tokens": found["usage"]["prompt_tokens"]}
    return told


def test_the_worker_reads_what_the_planner_has_read(server: Running) -> None:
    """By itself, and for `best`; `exact` computes; without a sender there is nothing to read."""
    texts = [" ".join(random.Random(n).choices(WORDS, k=60)) for n in range(3)]
    assert chat(server, "worker", texts[0])["shared"] == 0, "nobody has read it yet"
    chat(server, "planner", texts[1])
    exact = chat(server, "worker", texts[1], share="exact")
    assert (exact["shared"], exact["blended"]) == (0, 0)
    for text, share in ((texts[2], None), (texts[2] + " lamp", "best")):
        chat(server, "planner", text)
        own = chat(server, "worker", text, share=share)
        assert own["shared"] > 200
        assert own["exact"] + own["shared"] > 0.8 * own["prompt_tokens"]
        assert own["exact"] + own["shared"] + own["recomputed"] == own["prompt_tokens"]
    assert server.metric("kdn_reused_tokens_total", model_name="worker", kind="shared") > 0
    assert chat(server, "planner", texts[2])["shared"] == 0, "the pair is ordered"


def test_unrelated_weights_are_refused_by_the_profile(siblings: Siblings, tmp_path: Path) -> None:
    done = siblings.profile(tmp_path, siblings.stranger, siblings.tuned)
    assert done.code != 0
    assert "nothing to do with each other; choose two fine-tunes" in " ".join(done.err.split())
    assert program(tmp_path, "share", "list", "--json").json == {"pairs": []}
    folders = {"stranger": siblings.stranger, "worker": siblings.tuned}
    with kdn.open_models(folders, config=settings(tmp_path)) as models:
        text = " ".join(random.Random(8).choices(WORDS, k=60))
        models["stranger"].generate("Which?", [text], max_tokens=2)
        assert models["worker"].generate("Which?", [text], max_tokens=2).usage.shared == 0


def test_a_model_loses_nothing_to_itself_for_any_group(siblings: Siblings, tmp_path: Path) -> None:
    """Every contiguous group, every share of rows: not a bit of any answer's logits differs."""
    with kdn.open(siblings.base, config=settings(tmp_path), dtype="bfloat16") as k:
        side = PairSide("same", k.model, k.parts.attention)
        profiler = ShareProfiler(side, side)
        item = item_of(read_json_lines(siblings.data, ShareQuestion)[0], k.model)
        assert profiler.distance(item.context) == 0
        own = profiler.own_nll(item)
        choices = [one for one in default_choices(LAYERS, 1) if not one.mapped]
        assert len(choices) == 1 + 9 + 4
        for choice, found in profiler.measure(item, choices):
            assert (found.kl, found.nll, found.agrees) == (0.0, own, True), choice.name
