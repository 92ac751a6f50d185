"""kdn scale vllm-args prints a configuration that the connector itself takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdn.cli.scale import app
from kdn.scale.settings import read_settings


def test_the_printed_settings_are_those_that_the_connector_reads(tmp_path: Path) -> None:
    options = ["vllm-args", "--folder", str(tmp_path / "kv"), "--memory-bytes", "1000"]
    found = CliRunner().invoke(app, [*options, "--redis-url", "redis://h:6379/0", "--json"])
    assert found.exit_code == 0, found.output
    transfer = json.loads(found.stdout)
    assert transfer["kv_load_failure_policy"] == "recompute"
    settings = read_settings(transfer["kv_connector_extra_config"])
    assert settings.folder == tmp_path / "kv"
    assert (settings.memory_bytes, settings.redis_url) == (1000, "redis://h:6379/0")
    assert not (tmp_path / "kv").exists(), "the folder is vLLM's to make"


def test_the_printed_line_is_one_option_for_a_shell(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["vllm-args", "--folder", str(tmp_path / "a b"), "--no-save"])
    option, value = shlex.split(found.stdout)
    assert option == "--kv-transfer-config"
    told = json.loads(value)["kv_connector_extra_config"]
    assert told["folder"] == str(tmp_path / "a b")
    assert told["save"] is False


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "no tier outlives vLLM"),
        (["--redis-url", "http://x"], "no address of a Redis"),
        (["--objects-url", "s4://x"], "write s3://bucket/prefix, gs://, az:// or file:///folder\n"),
        (["--folder", "x", "--memory-bytes", "-1"], "memory_bytes"),
        (["--folder", "x", "--lora", "sql"], "write NAME=FOLDER"),
        (["--folder", "x", "--lora", "sql=nowhere"], "sql has no weights in nowhere"),
    ],
)
def test_what_the_connector_would_refuse_is_refused_here(options: list[str], sentence: str) -> None:
    found = CliRunner().invoke(app, ["vllm-args", *options])
    assert found.exit_code == 2
    assert sentence in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_tier_that_does_not_answer_is_told_of_and_adapters_are_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    options = ["--redis-url", "redis://127.0.0.1:9/0", "--lora", f"sql={tmp_path}"]
    found = CliRunner().invoke(app, ["vllm-args", *options])
    assert found.exit_code == 0, found.output
    assert "warning: the tier redis does not answer" in found.stderr
    assert shlex.split(found.stdout)[2:] == ["--enable-lora", "--lora-modules", f"sql={tmp_path}"]
