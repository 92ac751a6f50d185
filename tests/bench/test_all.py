"""Every benchmark runs, answers its question in numbers, and can be printed and written down."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kdn.bench import BENCHES, Result, print_result, write_page
from kdn.errors import BadInput, MissingExtra

WITHOUT_A_MODEL = {"l4s", "policies", "router", "rtc"}


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_a_benchmark_opens_with_its_question(name: str) -> None:
    told = importlib.import_module(BENCHES[name]).__doc__ or ""
    assert "?" in told.split("\n\n")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")  # peft asks it the old way
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")
@pytest.mark.parametrize("name", sorted(BENCHES))
def test_a_benchmark_answers(name: str, benched: Callable[[str], Result], tmp_path: Path) -> None:
    try:
        result = benched(name)
    except (BadInput, MissingExtra, ImportError) as missing:
        pytest.skip(f"{name}: {missing}")
    assert result.bench == name
    assert result.rows
    values = [value for value in result.summary.values() if value is not None]
    assert values
    assert all(math.isfinite(value) for value in values)
    assert bool(result.settings) == (name not in WITHOUT_A_MODEL), "the settings in force are told"
    page = write_page(result, tmp_path).read_text("utf-8")
    assert all(f"`{key}`" in page for key in result.summary)
    written = json.loads((tmp_path / f"{result.page_name}.json").read_text("utf-8"))
    assert written["summary"].keys() == result.summary.keys()
    shown = io.StringIO()
    print_result(result, Console(file=shown))
    assert shown.getvalue().count("note: ") == len(result.notes)
