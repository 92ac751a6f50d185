"""kdn label and kdn cost fit, as programs: rows to a table, through a kill."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import finish, kdn, start
from tests.engine.test_company import write_adapter

QUESTION = "Is this about a card? {text}"


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=4096)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"row {n} of the cards,{'yes' if n % 3 else 'no'}" for n in range(12)]
    path.write_text("text,truth\n" + "\n".join(lines) + "\n")
    return path


def label(home: Path, rows: Path, out: Path, tiny: Path, *more: str) -> tuple[str | Path, ...]:
    return (
        "label", rows, "-t", QUESTION, "-c", "yes,no", "-o", out, "--model", tiny, "--json", *more
    )  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_gets_its_probabilities(tmp_path: Path, rows: Path, tiny: Path) -> None:
    out = tmp_path / "out.csv"
    done = kdn(tmp_path, *label(tmp_path, rows, out, tiny, "--known", "truth"))
    assert done.code == 0, done.err
    assert done.json["rows"] == 12
    assert done.json["known"] == 12
    found = table(out)
    for row in found:
        assert float(row["p_yes"]) + float(row["p_no"]) == pytest.approx(1)
        assert row["label"] == ("yes" if row["p_yes"] >= row["p_no"] else "no")
    assert list(tmp_path.glob("*.journal")) == []
    again = kdn(tmp_path, *label(tmp_path, rows, out, tiny, "--threshold", "1"))
    assert again.code == 2
    assert "is there already; --force" in again.err
    assert table(out) == found
    nobody = kdn(tmp_path, *label(tmp_path, rows, out, tiny, "--threshold", "1", "--force"))
    assert nobody.json["abstained"] == 12


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Rows that take a while."""
    path = tmp_path / "many.csv"
    path.write_text("text\n" + "".join(f"{n} {'card ' * 300}\n" for n in range(60)))
    return path


def killed(home: Path, out: Path, *asked: str | Path) -> int:
    """Kill a run for good after some rows; to how many of them there are answers."""
    journal = out.with_name(f"{out.name}.journal")
    program = start(home, *asked)
    while program.poll() is None:
        if journal.exists() and journal.read_text().count("\n") > 3:
            program.send_signal(signal.SIGKILL)
            program.wait()
    finish(program)
    assert program.returncode == -signal.SIGKILL
    assert not out.exists()
    return journal.read_text().count("\n") - 1


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, many: Path, tiny: Path) -> None:
    """The second run computes the other rows, and the table is the same."""
    out = tmp_path / "out.csv"
    before = killed(tmp_path, out, *label(tmp_path, many, out, tiny))
    again = kdn(tmp_path, *label(tmp_path, many, out, tiny))
    assert again.code == 0, again.err
    assert again.json["resumed"] == before > 0
    assert "going on after row" in again.err
    whole = tmp_path / "whole.csv"
    assert kdn(tmp_path, *label(tmp_path, many, whole, tiny)).json["resumed"] == 0
    for one, other in zip(table(out), table(whole), strict=True):
        assert float(one["p_yes"]) == pytest.approx(float(other["p_yes"]), abs=1e-4)


def test_wrong_wishes_end_in_one_sentence(tmp_path: Path, rows: Path, tiny: Path) -> None:
    out = tmp_path / "out.csv"
    done = kdn(tmp_path, "label", rows, "-t", "{nope}", "-c", "yes,no", "-o", out, "--model", tiny)
    assert done.code == 2
    assert "the columns are text, truth" in done.err
    done = kdn(tmp_path, "label", rows, "-t", "{text}", "-c", "yes,yes", "-o", out, "--model", tiny)
    assert done.code == 2
    assert "the choice 'yes' stands there twice" in done.err


def test_a_row_that_is_too_long_is_refused_and_the_others_are_labelled(
    tmp_path: Path, tiny: Path
) -> None:
    """A token a byte: 5,000 do not fit into 4,096."""
    path = tmp_path / "rows.csv"
    path.write_text(f"text\nshort\n{'x' * 5000}\nlast\n")
    out = tmp_path / "out.csv"
    done = kdn(tmp_path, *label(tmp_path, path, out, tiny))
    assert done.code == 0, done.err
    assert [one["row"] for one in done.json["refused"]] == [2]
    assert "row 2 has no label: the prompt holds" in done.err
    assert [bool(row["label"]) for row in table(out)] == [True, False, True]


def test_wrong_places_and_templates_end_before_the_model_is_opened(
    tmp_path: Path, rows: Path
) -> None:
    """The model that is named does not exist, and no message says so."""
    nowhere = tmp_path / "no-model"
    for out, template, says in (
        (tmp_path / "no" / "o.csv", "{text}", "there is no folder"),
        (tmp_path / "o.xlsx", "{text}", "a table is one of"),
        (tmp_path / "o.csv", f"@{tmp_path / 'none'}", "No such file"),
        (tmp_path / "o.csv", "{nope}", "the columns are text, truth"),
    ):
        asked = ("label", rows, "-t", template, "-c", "a,b", "-o", out, "--model", nowhere)
        done = kdn(tmp_path, *asked)
        assert done.code == 2
        assert says in done.err
    known = ("label", rows, "-t", "{text}", "-c", "a,b", "-o", tmp_path / "o.csv")
    done = kdn(tmp_path, *known, "--known", "truht", "--model", nowhere)
    assert "no column is called 'truht'" in done.err


def test_answers_to_another_template_are_not_taken_over(
    tmp_path: Path, rows: Path, tiny: Path
) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "out.csv.journal").write_text("another job\n[-0.1, -2.3]\n")
    done = kdn(tmp_path, *label(tmp_path, rows, out, tiny))
    assert done.code == 2
    assert "1 result of another run" in done.err
    assert kdn(tmp_path, *label(tmp_path, rows, out, tiny, "--force")).json["resumed"] == 0


def test_answers_of_another_adapter_are_not_taken_over(
    tmp_path: Path, many: Path, tiny: Path
) -> None:
    """Both are called `qa`: what counts is what is in the folders."""
    out, old = tmp_path / "out.csv", write_adapter(tmp_path / "old", 1, ("q_proj",))
    new = write_adapter(tmp_path / "new", 2, ("q_proj",))
    before = killed(tmp_path, out, *label(tmp_path, many, out, tiny, "--adapter", f"qa={old}"))
    other = kdn(tmp_path, *label(tmp_path, many, out, tiny, "--adapter", f"qa={new}"))
    assert other.code == 2
    assert f"holds {before} result" in other.err
    same = kdn(tmp_path, *label(tmp_path, many, out, tiny, "--adapter", f"qa={old}"))
    assert same.json["resumed"] == before


def test_labels_no_better_than_chance_are_said_to_be(
    tmp_path: Path, rows: Path, tiny: Path
) -> None:
    """A model of random weights cannot do better, and 8 of 12 rows are `yes`."""
    done = kdn(tmp_path, *label(tmp_path, rows, tmp_path / "o.csv", tiny, "--known", "truth"))
    assert done.json["chance"] == pytest.approx(8 / 12)
    assert "no better than always answering" in done.err
    other = tmp_path / "cased.csv"
    other.write_text("text,truth\na,YES\n")
    done = kdn(tmp_path, *label(tmp_path, other, tmp_path / "p.csv", tiny, "--known", "truth"))
    assert "nothing in the column 'truth' is one of the choices" in done.err


def test_a_fit_is_kept_and_used(tmp_path: Path, tiny: Path) -> None:
    done = kdn(tmp_path, "cost", "fit", "--model", tiny, "--repeats", "1", "--json")
    assert done.code == 0, done.err
    assert done.json["jct"]["source"] == "fit"
    assert len(list((tmp_path / "cost").glob("jct-*.json"))) == 1
