"""Model files of strangers: whatever they hold, they load or end in one WeightsError."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kdn.errors import WeightsError
from kdn.model import load_adapter, load_model
from kdn.model.folder import read_config
from tests.model.test_gguf import write_gguf

Tiny = Callable[..., Path]

FUZZ = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.sampled_from([0, -1, 1 << 31, 1 << 63, 10**30, 1e308, 1e-320, "x", "", "4", [], {}]),
        st.text(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model: Tiny) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def gguf_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapter")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{stem}A.weight": torch.ones(2, 64), f"{stem}B.weight": torch.ones(64, 2)},
        made / "adapter_model.safetensors",
    )
    (made / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    return made


def loads(path: Path) -> str:
    """It loads, or is refused in one line, which is given; nothing else is raised."""
    with tempfile.TemporaryDirectory() as cache:
        refused = refusal(
            lambda: load_model(path, cache_dir=Path(cache), dtype="float32", device="cpu")
        )
    assert "\n" not in refused
    assert len(refused) < 1500
    return refused


def refusal(load: Callable[[], object]) -> str:
    """What a WeightsError says; empty where the files load. Any other error is the test's failure."""
    try:
        load()
    except WeightsError as error:
        return str(error)
    return ""


def copied(folder: Path, to: str) -> Path:
    return Path(shutil.copytree(folder, Path(to) / "model"))


def changed(data: bytes, changes: list[tuple[int, int]], size: int) -> bytes:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    return bytes(damaged[: len(damaged) - size])


CHANGES = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6)


@FUZZ
@given(CHANGES, st.sampled_from([0, 0, 1, 5000]))
def test_a_damaged_gguf_header(gguf_bytes: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "tiny.gguf"
        file.write_bytes(changed(gguf_bytes, changes, cut))
        loads(file)


@FUZZ
@given(CHANGES, st.sampled_from([0, 0, 1, 5000]))
def test_a_damaged_safetensors_header(
    folder: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = copied(folder, place) / "model.safetensors"
        file.write_bytes(changed(file.read_bytes(), changes, cut))
        loads(file.parent)


@FUZZ
@given(st.data())
def test_a_config_of_any_values(folder: Path, data: st.DataObject) -> None:
    known = json.loads((folder / "config.json").read_text())
    names = [*known, "head_dim", "rope_scaling", "rope_parameters", "layer_types", "sliding_window"]
    wrong = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as place:
        made = copied(folder, place)
        (made / "config.json").write_text(json.dumps(known | wrong))
        loads(made)


@FUZZ
@given(
    st.sampled_from(["chat_template", "eos_token", "bos_token", "add_bos_token", "tokenizer_class"]),
    VALUES,
)  # fmt: skip
def test_tokenizer_settings_of_any_values(folder: Path, name: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = copied(folder, place)
        path = made / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        loads(made)


@FUZZ
@given(CHANGES)
def test_a_damaged_tokenizer(folder: Path, changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = copied(folder, place)
        path = made / "tokenizer.json"
        path.write_bytes(changed(path.read_bytes(), changes, 0))
        loads(made)


@FUZZ
@given(st.data())
def test_an_adapter_of_any_settings(folder: Path, adapter: Path, data: st.DataObject) -> None:
    names = ["r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "bias", "peft_type"]
    said = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    with tempfile.TemporaryDirectory() as place:
        made = copied(adapter, place)
        (made / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | said))
        config, device = read_config(folder), torch.device("cpu")
        refused = refusal(lambda: load_adapter(made, "a", config, torch.float32, device))
        assert not refused or str(made) in refused


def gguf_of(fields: bytes = b"", num_fields: int = 0, tensors: bytes = b"", num: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num, num_fields) + fields + tensors


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def number(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gguf_of(string("general.alignment") + number(4) + number(0), 1), "alignment is 0"),
        (gguf_of(string("x") + (number(9) + struct.pack("<Q", 1)) * 9, 1), "cannot be read"),
        (gguf_of(string("x") + number(9) + number(4) + struct.pack("<Q", 1 << 60), 1), "a list of"),
        (gguf_of(string("x") + number(8) + struct.pack("<Q", 1 << 60), 1), "a string of"),
        (gguf_of(num_fields=1 << 60), "fields"),
        (gguf_of(num=1 << 60), "tensors"),
        (gguf_of(tensors=string("t") + number(0) + number(0) + bytes(8), num=1), "0 axes"),
        (gguf_of(tensors=string("t") + number(1 << 30), num=1), "axes"),
    ],
)
def test_absurd_sizes_in_a_gguf_header_are_refused_before_they_are_made(
    data: bytes, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=words):
        load_model(file, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 0}, "damaged"),
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"head_dim": 15}, "15 values"),
        ({"eos_token_id": 4_294_967_295}, "end token is 4294967295"),
    ],
)
def test_a_config_that_no_model_has(
    change: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    made = copied(folder, str(tmp_path))
    known = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(known | change))
    with pytest.raises(WeightsError, match=words):
        load_model(made, cache_dir=tmp_path)


def test_brackets_without_end_are_refused(folder: Path, tmp_path: Path) -> None:
    made = copied(folder, str(tmp_path))
    (made / "config.json").write_text("[" * 200_000)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_model(made, cache_dir=tmp_path)


@pytest.mark.parametrize("template", [{"a": "b"}, [{"template": "x"}], ["x"], 5])
def test_a_chat_template_that_is_no_text(template: object, folder: Path, tmp_path: Path) -> None:
    made = copied(folder, str(tmp_path))
    path = made / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(WeightsError, match="chat template"):
        load_model(made, cache_dir=tmp_path)


def test_a_chat_template_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    made = copied(folder, str(tmp_path))
    (made / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(WeightsError, match="chat template"):
        load_model(made, cache_dir=tmp_path)


def test_a_folder_names_no_file_outside_of_itself(folder: Path, tmp_path: Path) -> None:
    made = copied(folder, str(tmp_path))
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside of its folder"):
        load_model(made, cache_dir=tmp_path)


def test_a_pattern_that_would_take_for_ever_is_refused(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    for pattern in ("(\\w+)+!", "(a|a)*b", ".*" * 9, "x" * 500):
        made = copied(adapter, str(tmp_path / pattern[:9].replace("/", "_")))
        said = {"peft_type": "LORA", "alpha_pattern": {pattern: 8}}
        (made / "adapter_config.json").write_text(json.dumps(said))
        with pytest.raises(WeightsError, match="intricate"):
            load_adapter(made, "a", read_config(folder), torch.float32, torch.device("cpu"))


def test_weights_that_are_not_finite_load_and_fail_at_the_first_token(
    folder: Path, tmp_path: Path
) -> None:
    """What a draw then says is in tests/engine/test_sampling.py."""
    made = copied(folder, str(tmp_path))
    tensors = load_file(made / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, made / "model.safetensors")
    assert loads(made) == ""
