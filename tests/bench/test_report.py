"""A result on paper: complete, and the same for equal results."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.full_disk import longest_file

from kdn.bench import (
    BENCHES,
    BenchOptions,
    Figure,
    Result,
    Row,
    load_bench,
    print_result,
    write_json,
    write_page,
)
from kdn.bench.common.result import Scalar, commit_name
from kdn.config import Config, StoreConfig
from kdn.errors import BadInput, NoSpace
from kdn.machine.facts import Machine

MACHINE = Machine(
    cpu="Abacus", cores=2, flags=(), memory_bytes=24 * 10**9, torch="2.13.0", gpu=None
)
RESULT = Result(
    bench="beads",
    model="tiny",
    machine=MACHINE,
    commit="abc",
    config=BenchOptions(quick=True).describe(),
    rows=[{"tokens": 512, "kdn_s": 0.25}, {"tokens": 1024, "kdn_s": 0.5, "other_s": 1.0}],
    summary={"ttft_speedup": 2.0, "ttft_speedup_other": None},
    notes=("other was not there",),
    figures=(Figure("Beads", "tokens", "s", {"kdn": [(512, 0.25), (1024, 0.5)]}),),
)


def test_json_has_every_key_and_null_for_the_absent(tmp_path: Path) -> None:
    write_json(RESULT, tmp_path / "new" / "beads.json")
    read = json.loads((tmp_path / "new" / "beads.json").read_text())
    keys = ["bench", "commit", "machine", "model", "config", "settings", "rows", "summary"]
    assert list(read)[:8] == keys
    assert read["summary"] == {"ttft_speedup": 2.0, "ttft_speedup_other": None}
    assert read["machine"]["cpu"] == "Abacus"
    assert read["config"]["quick"] is True


def test_a_full_disk_leaves_the_page_of_before(tmp_path: Path) -> None:
    page = write_page(RESULT, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused = pytest.raises(NoSpace, match=r"writing .*beads\.json: .*free some space")
    with longest_file(100), refused:
        write_page(replace(RESULT, notes=("new",)), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert page.stat().st_mode & 0o777 == 0o644


def test_table_shows_rows_summary_and_notes() -> None:
    paper = io.StringIO()
    print_result(RESULT, Console(file=paper, width=120))
    shown = paper.getvalue()
    for piece in ("kdn_s", "0.25", "ttft_speedup_other", "note: other was not there", "Abacus"):
        assert piece in shown


def test_parts_have_tables_of_their_own() -> None:
    """Beads and strings share no column, so neither table has empty cells."""
    rows: list[Row] = [{"part": "beads", "colour": "red"}, {"part": "strings", "length_m": 3.0}]
    paper = io.StringIO()
    print_result(replace(RESULT, rows=rows), Console(file=paper, width=120))
    shown = paper.getvalue()
    assert "red" in shown
    assert shown.index("red") < shown.index("length_m")
    assert "-  " not in shown.split("summary")[0]


def test_brackets_are_shown_as_they_stand() -> None:
    """`[plot]` and `[red]` are words here, not colours."""
    note = "a report has plots: pip install 'kdn[plot]'"
    rows: list[Row] = [{"part": "[red]", "side[0]": "vllm [cpu]"}]
    paper = io.StringIO()
    print_result(replace(RESULT, rows=rows, notes=(note,)), Console(file=paper))
    for piece in (note, "[red]", "side[0]", "vllm [cpu]"):
        assert piece in paper.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.12345, "0.123"), (-1234.5, "-1,234"), (True, "True"), (7, "7"), ("a", "a")],
)
def test_a_number_has_three_digits_and_the_absent_a_dash(value: Scalar, shown: str) -> None:
    paper = io.StringIO()
    print_result(replace(RESULT, rows=[{"x": value}], summary={}), Console(file=paper))
    assert f" {shown} " in paper.getvalue()


def test_a_page_of_its_own_and_a_model_without_its_place(tmp_path: Path) -> None:
    found = replace(RESULT, page="beads-long", model="/full/anna/models/tiny.gguf", figures=())
    page = write_page(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"beads-long.md", "beads-long.json"}
    assert "Model `tiny`;" in page.read_text()
    assert "anna" not in page.read_text() + (tmp_path / "beads-long.json").read_text()


@pytest.mark.parametrize(
    ("dtype", "page", "told"),
    [
        (None, "beads", "Model `tiny`;"),
        ("bfloat16", "beads", "Model `tiny`;"),
        ("float32", "beads-float32", "Model `tiny` in float32;"),
    ],
)
def test_times_of_a_processor_without_bf16_have_a_page_of_their_own(
    dtype: str | None, page: str, told: str, tmp_path: Path
) -> None:
    found = replace(RESULT, model="tiny", dtype=dtype, figures=())
    written = write_page(found, tmp_path)
    assert written.name == f"{page}.md"
    assert told in written.read_text()
    kept = json.loads((tmp_path / f"{page}.json").read_text())
    assert kept["config"].get("dtype") == dtype


def test_page_is_reproducible_and_names_its_command(tmp_path: Path) -> None:
    first = write_page(RESULT, tmp_path / "one")
    second = write_page(RESULT, tmp_path / "two")
    names = {"beads.md", "beads.json", "beads-0.svg"}
    assert {path.name for path in first.parent.iterdir()} == names
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    text = first.read_text()
    assert "`kdn bench beads --quick --report docs/benchmarks`" in text
    assert "| 1024 | 0.5 | 1 |" in text
    assert "| 512 | 0.25 | - |" in text


def test_a_command_names_every_option_that_is_not_the_usual_one(tmp_path: Path) -> None:
    options = BenchOptions(model="/full/anna/qwen.gguf", data=Path("/full/anna/musique"), pairs=3)
    found = replace(RESULT, config=options.describe() | {"prompts": 7}, figures=())
    text = write_page(found, tmp_path).read_text()
    command = "kdn bench beads --model qwen --pairs 3 --data musique --report docs/benchmarks"
    assert f"`{command}`" in text
    kept = BenchOptions(
        only="timing", rows=Path("/full/anna/rows.jsonl"), arms=("ours", "disk"), ratios=(0.15, 0.3)
    )
    found = replace(found, config=kept.describe_kept())
    told = "--only timing --rows rows.jsonl --arms ours,disk --ratio 0.15 --ratio 0.3"
    assert told in write_page(found, tmp_path).read_text()


def test_every_benchmark_can_be_loaded() -> None:
    for name in BENCHES:
        assert callable(load_bench(name))
    with pytest.raises(BadInput, match=r"there are \w+, "):
        load_bench("engin")


def test_a_result_says_where_it_comes_from() -> None:
    assert commit_name()


def test_a_result_tells_the_settings_in_force_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    options = BenchOptions()
    store = StoreConfig(memory_bytes=7, folder=Path("/scratch/store"))
    for _ in range(2):
        options.note(Config(home=tmp_path, store=store))
    (shown,) = options.settings
    assert shown["store"]["memory_bytes"] == 7
    assert shown["engine"]["max_batch_tokens"] == 2048
    assert (shown["library"]["folder"], shown["store"]["folder"]) == ("(home)/library", "(scratch)")
    assert str(tmp_path) not in json.dumps(
        replace(RESULT, settings=(shown,)).as_json(), default=str
    )
