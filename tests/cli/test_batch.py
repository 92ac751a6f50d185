"""`kdn batch` refuses what no batch can do before Ray is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.rank import read_rows
from kdn.scale.ray import BatchJournal, BatchSettings, PrefillBatch, RowResult
from tests.cli.program import Done, kdn


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


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


class Begun:
    """A prefill of three rows of which some were done when it was killed; no Ray answers at its address."""

    def __init__(self, home: Path, tiny: Path, done: dict[int, RowResult]) -> None:
        self.home, self.out = home, home / "out.csv"
        self.journal = home / "out.csv.journal"
        self._data = home / "three.csv"
        self._data.write_text("text\nfirst\nsecond\nthird\n")
        self._tiny = tiny
        settings = BatchSettings(str(tiny), str(home), address="127.0.0.1:9")
        journal = BatchJournal(self.journal, read_rows(self._data), PrefillBatch(), settings)
        journal.add(*done.items())
        journal.close()

    def again(self, *more: str) -> Done:
        """The same command, perhaps with more words."""
        asked = ("batch", "prefill", self._data, "-o", self.out, "--model", self._tiny)
        return kdn(self.home, *asked, "--address", "127.0.0.1:9", *more)


def test_a_run_of_which_all_rows_are_done_writes_the_table_without_ray(
    tmp_path: Path, tiny: Path
) -> None:
    begun = Begun(
        tmp_path, tiny, {2: {"num_tokens": 3}, 0: {"num_tokens": 1}, 1: {"error": "too long"}}
    )
    done = begun.again("--json")
    assert done.code == 0, done.err
    assert f"going on with 3 of 3 rows from {begun.journal}" in done.err
    assert done.json["resumed"] == 3
    assert done.json["failed"] == [{"row": 2, "reason": "too long"}]
    table = "text,num_tokens,error\nfirst,1,\nsecond,,too long\nthird,3,\n"
    assert begun.out.read_bytes().decode().replace("\r\n", "\n") == table
    assert not begun.journal.exists()


def test_an_early_end_tells_what_is_kept(tmp_path: Path, tiny: Path) -> None:
    begun = Begun(tmp_path, tiny, {1: {"num_tokens": 2}})
    before = begun.journal.read_bytes()
    done = begun.again()
    assert done.code != 0
    assert (
        f"ended early: {begun.journal} keeps 1 of 3 rows, and the same command goes on" in done.err
    )
    assert begun.journal.read_bytes() == before
    assert not begun.out.exists()


def test_an_early_end_with_nothing_done_leaves_nothing(tmp_path: Path, tiny: Path) -> None:
    begun = Begun(tmp_path, tiny, {})
    done = begun.again()
    assert done.code != 0
    assert "ended early" not in done.err
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["three.csv"]


def test_results_of_another_job_are_discarded_by_force_alone(tmp_path: Path, tiny: Path) -> None:
    begun = Begun(tmp_path, tiny, {1: {"num_tokens": 2}})
    refused = begun.again("--salt", "other")
    assert refused.code == 2
    assert "holds 1 result of another run" in refused.err
    wrong = begun.again("--column", "title", "--force")
    assert "no column is called 'title'" in wrong.err
    assert begun.journal.exists(), "a wrong word discards nothing"
    begun.again("--salt", "other", "--force")
    assert not begun.journal.exists()
