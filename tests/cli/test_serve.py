"""kdn serve with several models: names on the command line, one port, an orderly stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kdn.cli.options import ModelChoice
from kdn.errors import BadConfig
from tests.cli.program import finish, start
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import settings


def test_several_models_answer_on_one_port(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """One under a name of its own, one under its folder's, and an adapter of the second."""
    first, second = tiny_model("llama"), tiny_model("llama", seed=1).rename(tmp_path / "worker")
    adapter = write_adapter(tmp_path / "x", 1, ("q_proj",))
    models = ("-m", f"planner={first}", "-m", str(second), "--adapter", f"tuned@worker={adapter}")
    program = start(tmp_path / "home", "serve", "--port", "0", "--json", *models)
    try:
        assert program.stdout is not None
        said = json.loads(program.stdout.readline())
        assert (said["model"], said["models"]) == ("planner", ["planner", "worker"])
        assert said["adapters"] == ["tuned"]
        listed = httpx.get(f"{said['url']}/v1/models", timeout=60).json()["data"]
        assert [one["id"] for one in listed][:3] == ["planner", "worker", "tuned"]
        for name in ("planner", "worker", "tuned"):
            body = {"model": name, "prompt": "a", "max_tokens": 2}
            answer = httpx.post(f"{said['url']}/v1/completions", json=body, timeout=60)
            assert answer.json()["model"] == name
    finally:
        program.terminate()
        done = finish(program)
    assert done.code == 0, done.err


def test_names_on_the_command_line_that_cannot_be(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder, config = str(tiny_model("llama")), settings(tmp_path)
    with pytest.raises(BadConfig, match="-m NAME=MODEL"):
        ModelChoice("").open_all([folder, folder], config)
    with pytest.raises(BadConfig, match="--adapter 'nothing'"):
        ModelChoice("", adapters=("nothing",)).open_all([folder], config)
