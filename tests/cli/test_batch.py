"""`kdn batch` refuses what no batch can do before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.cli.batch import keep_early
from kdn.rank import read_rows
from kdn.scale.ray import BatchResult
from tests.cli.program import kdn


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text\nA ferry\n")
    return path


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("prefill", "--column", "title"), "no column is called 'title'; the columns are text"),
        (("label", "-t", "{text}?", "-c", "yes"), "a question needs two choices or more, not 1"),
        (("label", "-t", "{text}?", "-c", "a=x,a=y"), "the choice 'a' stands there twice"),
        (("label", "-t", "{body}?", "-c", "yes,no"), "the template asks for 'body'"),
        (("rerank",), "no column is called 'query'; the columns are text"),
        (("prefill", "--actors", "0"), "greater than or equal to 1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, data: Path, command: tuple[str, ...], sentence: str
) -> None:
    verb, *options = command
    done = kdn(tmp_path, "batch", verb, data, "-o", tmp_path / "out.parquet", *options)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "out.parquet").exists()


def test_a_table_that_is_there_is_not_written_over(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("kept")
    done = kdn(tmp_path, "batch", "prefill", data, "-o", out)
    assert done.code == 2
    assert "is there already" in done.err
    assert out.read_text() == "kept"


def test_a_template_may_lie_in_a_file(tmp_path: Path, data: Path) -> None:
    template = tmp_path / "template.txt"
    template.write_text("Which? {missing}")
    out = tmp_path / "out.csv"
    done = kdn(tmp_path, "batch", "label", data, "-o", out, "-t", f"@{template}", "-c", "a,b")
    assert "the template asks for 'missing'" in done.err


def test_rows_that_are_done_before_an_early_end_are_kept_beside_those_of_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("first", "second"):
        early = BatchResult(({"text": text, "label": "Yes"},), ("text", "label"), {})
        keep_early(tmp_path / "out.csv", early)
    written = {path.name: read_rows(path)[0]["text"] for path in tmp_path.iterdir()}
    assert written == {"out.partial.csv": "first", "out.partial1.csv": "second"}
    assert f"{tmp_path}/out.partial.csv: 1 row done before the end" in capsys.readouterr().err
