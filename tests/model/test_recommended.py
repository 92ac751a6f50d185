"""The short list of hub models: names resolve without a download, and needs are sums done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdn.cli import app
from kdn.errors import UnknownModel
from kdn.model import resolve
from kdn.model.recommended import HUB_MODELS, hub_model, recommend

GB = 10**9


def test_needs_are_weights_and_kv_and_room_to_work() -> None:
    """Qwen3 0.6B: 28 layers x 8 heads x 128 x (K, V) x 2 bytes = 114,688 bytes a token."""
    found = hub_model("qwen3-0.6b")
    assert found is not None
    model, is_gguf = found
    assert not is_gguf
    assert model.kv_token_bytes == 28 * 8 * 128 * 2 * 2 == 114_688
    need = model.need(8192)
    assert (need.weights_bytes, need.kv_bytes) == (1_503_264_768, 939_524_096)
    assert need.total_bytes == 1_503_264_768 + 939_524_096 + (1 << 30)
    assert model.need(8192, int8=True).weights_bytes == 751_632_384


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "queries", "vocabulary", "per_layer", "has_head"),
    [
        ("smollm2-360m", 960, 2560, 960, 49_152, 0, False),
        ("qwen3-0.6b", 1024, 3072, 2048, 151_936, 256, True),
        ("llama3.2-1b", 2048, 8192, 2048, 128_256, 0, False),
        ("smollm2-1.7b", 2048, 8192, 2048, 49_152, 0, False),
        ("qwen3-1.7b", 2048, 6144, 2048, 151_936, 256, True),
        ("llama3.2-3b", 3072, 8192, 3072, 128_256, 0, False),
        ("qwen3-4b", 2560, 9728, 4096, 151_936, 256, False),
    ],
)
def test_parameters_follow_from_the_published_shapes(
    name: str,
    hidden: int,
    inner: int,
    queries: int,
    vocabulary: int,
    per_layer: int,
    *,
    has_head: bool,
) -> None:
    """Embedding, q and o, k and v, three matrices of the MLP, norms (Qwen3: two more of 128 values)."""
    found = hub_model(name)
    assert found is not None
    model, _ = found
    kv = model.kv_heads * model.head_dim
    layer = 2 * hidden * queries + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden + per_layer
    tables = (1 + has_head) * vocabulary * hidden
    assert model.parameters == tables + model.layers * layer + hidden


def test_the_command_that_is_recommended_is_one_of_kdns() -> None:
    """7 GB hold the largest with int8 weights alone."""
    done = CliRunner().invoke(app, ["models", "recommend", "--memory-gb", "7"])
    [line] = [line for line in done.output.splitlines() if line.startswith("kdn serve")]
    assert line == "kdn serve --model qwen3-4b --quantization int8"
    assert "--quantization" in CliRunner().invoke(app, ["serve", "--help"]).output


def test_the_largest_that_fits_is_recommended() -> None:
    """Qwen3 4B at 8k: 8.04 + 1.21 + 1.07 GB in bf16, 4.02 less in int8."""
    assert _name(recommend(11 * GB)) == ("qwen3-4b", False)
    assert _name(recommend(7 * GB)) == ("qwen3-4b", True)
    assert _name(recommend(3 * GB)) == ("llama3.2-1b", True)
    assert _name(recommend(11 * GB, context=100_000)) == ("llama3.2-1b", False)
    assert recommend(1 * GB) is None


def _name(found: object) -> object:
    assert isinstance(found, tuple)
    return found[0].name, found[1]


def test_a_short_name_is_the_folder_that_was_brought(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    with pytest.raises(UnknownModel, match=r"kdn models get qwen3-0\.6b"):
        resolve("qwen3-0.6b", tmp_path)
    place = tmp_path / "models" / "Qwen--Qwen3-0.6B"
    place.parent.mkdir()
    tiny_model("qwen3").rename(place)
    assert resolve("qwen3-0.6b", tmp_path) == resolve("Qwen/Qwen3-0.6B", tmp_path) == place
    file = tmp_path / "models" / "Qwen--Qwen3-0.6B-GGUF" / "Qwen3-0.6B-Q8_0.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    assert resolve("qwen3-0.6b-gguf", tmp_path) == file


def test_the_list_says_what_is_here_and_what_each_needs(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["models", "list", "--home", str(tmp_path), "--json"])
    listed = {row["name"]: row for row in json.loads(done.stdout)["models"]}
    assert {model.name for model in HUB_MODELS} < set(listed)
    assert listed["qwen3-4b"]["size_bytes"] == 8_044_936_192
    assert listed["qwen3-4b"]["path"] is None
    shown = CliRunner().invoke(app, ["models", "list", "--home", str(tmp_path)]).stdout
    assert "llama3.2-3b" in shown


def test_a_recommendation_names_the_command_and_downloads_nothing(tmp_path: Path) -> None:
    command = ["models", "recommend", "--memory-gb", "7", "--home", str(tmp_path)]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (found["name"], found["int8"]) == ("qwen3-4b", True)
    shown = CliRunner().invoke(app, command)
    assert "kdn models get qwen3-4b" in shown.stdout
    assert "for trying the machinery" in shown.stdout
    assert not list(tmp_path.rglob("*.safetensors"))
    small = CliRunner().invoke(app, ["models", "recommend", "--memory-gb", "1"])
    assert small.exit_code == 0
    assert "smollm2-135m" in small.stdout
    assert CliRunner().invoke(app, ["models", "recommend", "--memory-gb", "-1"]).exit_code == 2
