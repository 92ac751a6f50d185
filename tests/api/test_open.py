"""Opening: what is refused before anything is computed, and how answers are drawn by default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.api.answers import Answer, Source
from kdn.config import Config
from kdn.core import FinishReason, Sampling, Usage

TinyModel = Callable[..., Path]


def test_home_may_be_a_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    with kdn.open(tiny_model(), home=str(tmp_path)) as k:
        assert k.config.home == tmp_path


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"home": "/a", "config": Config(home=Path("/b"))}, "config has its own"),
        ({"config": {"home": "/a"}}, "config is a dict"),
        ({"home": 7}, "home is 7; it must be a path"),
        ({"model": None}, "model is None; it must be a text or a path"),
        ({"model": "smolm2"}, "no model goes by 'smolm2' here: .*smollm2-135m"),
        ({"model": ""}, "no model goes by '' here"),
        ({"device": "tpu"}, "tpu"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_what_cannot_be_opened_is_said(
    tiny_model: TinyModel, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    home = {} if {"home", "config"} & set(options) else {"home": tmp_path}
    with pytest.raises(kdn.BadInput, match=why):
        kdn.open(**({"model": tiny_model()} | home | options))


def test_a_wrong_name_is_found_before_kernels_are_compiled(tmp_path: Path) -> None:
    with pytest.raises(kdn.UnknownModel):
        kdn.open("no-such-model", home=tmp_path)
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"model_type": "lla'),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "torn"),
    ],
)
def test_a_damaged_file_is_told_before_kernels_are_compiled(
    tiny_model: TinyModel, tmp_path: Path, name: str, text: str
) -> None:
    folder = tiny_model()
    (folder / name).write_text(text)
    with pytest.raises(kdn.WeightsError):
        kdn.open(folder, home=tmp_path)
    assert not (tmp_path / "kernels").exists()


def test_a_foreign_shape_or_adapter_is_told_before_kernels_are_compiled(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = tiny_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(kdn.WeightsError, match="lacks the tensor model"):
        kdn.open(folder, home=tmp_path)
    with pytest.raises(kdn.WeightsError, match="adapter_config"):
        kdn.open(tiny_model(), home=tmp_path, adapters={"a": tmp_path})
    wrongs: list[dict[str, Any]] = [
        {"dtype": "float8"},
        {"device": "tpu"},
        {"quantization": "int3"},
        {"dtype": ""},
    ]
    for wrong in wrongs:
        with pytest.raises(kdn.BadInput):
            kdn.open(tiny_model(), home=tmp_path, **wrong)
    assert not (tmp_path / "kernels").exists()


def test_requests_that_leave_it_open_take_it(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model()
    said = {"do_sample": True, "temperature": 0.25}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with kdn.open(folder, home=tmp_path) as k:
        assert k.prompts.request("?").sampling.temperature == 0.25
        assert k.prompts.request("?", sampling=Sampling()).sampling.temperature == 0
        answer = k.generate("?", max_tokens=3, temperature=0)
        same = k.generate("?", sampling=Sampling(max_tokens=3, ignore_eos=False))
        assert answer.token_ids == same.token_ids


def test_an_answer_is_its_text_and_a_notebook_shows_its_sources() -> None:
    source = Source("Falcons", "Speed", "It dives\nfast.", 1.0, "/a/falcons.md")
    answer = Answer("389 km/h", FinishReason.STOP, Usage(1, 1), (1,), sources=(source,))
    assert f"{answer}" == "389 km/h"
    shown = "389 km/h\n\n> **Falcons** (Speed): It dives fast."
    assert answer._repr_markdown_() == shown
