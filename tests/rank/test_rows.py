"""Tables in and out: every form, odd cells, and what is refused with its line."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
from pathlib import Path

import pytest

from kdn.errors import BadInput, PromptTooLong, StoreError
from kdn.rank import (
    Choice,
    ChoiceProbabilities,
    LabelJob,
    LabelTable,
    answer_of,
    check_out,
    check_rows,
    make_table,
    own_columns,
    read_rows,
    write_table,
)
from kdn.rank.rows import write_rows

YES, NO = Choice("yes", 5), Choice("no", 9)
HALF = (math.log(0.5), math.log(0.5))


def file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def job(**options: object) -> LabelJob:
    return LabelJob("model", "{text}", (YES, NO), **options)  # type: ignore[arg-type]


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", "text,id\r\none,1\r\n"),
        ("a.CSV", "text,id\none,1\n"),
        ("a.csv", b"\xef\xbb\xbftext,id\none,1\n"),
        ("a.csv", "text,id\none,1\n".encode("utf-16")),
        ("a.csv", 'text,id\n\n"one",1\n\n'),
        ("a.tsv", "text\tid\none\t1\n"),
        ("a.TAB", "text\tid\none\t1\n"),
        ("a.jsonl", '{"text":"one","id":1}\n'),
        ("a.JSONL", b'\xef\xbb\xbf{"text":"one","id":1}\r\n\r\n'),
        ("a.ndjson", '{"text":"one","id":"1"}'),
    ],
)
def test_one_row_in_every_form(tmp_path: Path, name: str, data: str | bytes) -> None:
    assert read_rows(file(tmp_path, name, data)) == [{"text": "one", "id": "1"}]


def test_a_line_of_json_ends_at_a_newline_only(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\u0085four\x1c"
    path = file(tmp_path, "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert read_rows(path) == [{"text": text}]
    assert read_rows(file(tmp_path, "a.csv", f"text\n{text}\n")) == [{"text": text}]


def test_a_cell_may_be_long_and_hold_lines(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = file(tmp_path, "a.csv", f'text,html\n"a\nb\r\nc",{long}\n')
    assert read_rows(path) == [{"text": "a\nb\r\nc", "html": long}]


def test_values_that_are_no_text_are_written_as_json_writes_them(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", '{"a":null,"b":2.5,"c":["x"],"d":{"e":1}}\n')
    assert read_rows(path) == [{"a": "", "b": "2.5", "c": '["x"]', "d": '{"e": 1}'}]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "text,id\nfine,1\nbroken,1,x\n", "line 3: 3 cells under 2 columns"),
        ("a.csv", 'text,id\n"two\nlines",1\nshort\n', "line 4: 1 cell under 2 columns"),
        ("a.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("a.csv", "text\n", "no row in it"),
        ("a.csv", "", "no row in it"),
        ("a.csv", '"open\n', "cannot be read"),
        ("a.csv", b"text\ncaf\xe9\n", "not UTF-8"),
        ("a.jsonl", '{"a":1}\n["a","b"]\n', r"line 2: a row is an object .* '\[\"a\",\"b\"\]'"),
        ("a.jsonl", '{"a":1}\n\n"text"\n', "line 3: a row is an object"),
        ("a.jsonl", "{torn", "line 1: no JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: no JSON"),
        ("a.jsonl", '{"a":"\\ud800"}', "line 1: half of a character"),
        ("a.jsonl", '{"a":1}\n{"a":NaN}\n', "line 2: NaN is no number in JSON"),
        ("a.jsonl", '{"a":[-Infinity]}', "line 1: -Infinity is no number in JSON"),
        ("a.jsonl", '{"a":1e999}', "line 1: 1e999 is beyond the largest number"),
        ("a.jsonl", '{"a":"x","a":"y"}', "line 1: the key 'a' stands twice in one object"),
        ("a.jsonl", '{"a":' + "9" * 5_000 + "}", "line 1: no JSON"),
        ("a.xlsx", "PK", "a table is one of .csv"),
        ("a.txt", "text\nx\n", "not .txt"),
        ("a", "text\nx\n", "not without a suffix"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, text: str | bytes, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        read_rows(file(tmp_path, name, text))


def test_a_missing_column_is_named_before_anything_is_asked() -> None:
    rows = [{"text": "a", "id": "1"}, {"id": "2"}]
    check_rows(rows, "{id}", known="text")
    with pytest.raises(BadInput, match="asks for 'nope'; the columns are text, id"):
        check_rows(rows, "{nope}")
    with pytest.raises(BadInput, match="no column is called 'labell'"):
        check_rows(rows, "{id}", known="labell")
    with pytest.raises(BadInput, match="row 2 has no 'text'"):
        check_rows(rows, "{text}")


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "CSV", "tsv", "jsonl", "NDJSON", "parquet"])
def test_tables_are_written_as_they_can_be_read(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = [{"text": 'a "quoted", line\nand\tmore'}, {"text": "ü"}]
    table = make_table(job(threshold=0.7), rows, [(math.log(0.75), math.log(0.25)), (-0.7, -0.7)])
    path = tmp_path / f"out.{suffix}"
    write_table(path, rows, (YES, NO), table)
    found = read_rows(path)
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert [row["label"] for row in found] == ["yes", ""]
    assert float(found[0]["p_yes"]) == pytest.approx(0.75)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_no_column_is_lost_where_rows_differ(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = [{"text": "a"}, {"text": "b", "note": "n"}, {"more": "m", "text": "c"}]
    path = tmp_path / f"out.{suffix}"
    write_table(path, rows, (YES, NO), make_table(job(), rows, [HALF] * 3))
    found = read_rows(path)
    assert [row.get("note", "") for row in found] == ["", "n", ""]
    assert [row.get("more", "") for row in found] == ["", "", "m"]
    if suffix != "jsonl":
        assert list(found[0]) == ["text", "note", "more", "label", "p_yes", "p_no"]


def test_a_column_of_the_rows_is_never_written_over(tmp_path: Path) -> None:
    rows = [
        {"text": "good", "label": "yes", "p_no": "mine"},
        {"text": "x", "label": "", "p_no": ""},
    ]
    assert own_columns(rows, (YES, NO)) == ["kdn_label", "p_yes", "kdn_p_no"]
    assert own_columns([{"label": "", "kdn_label": ""}], ())[0] == "kdn_kdn_label"
    path = tmp_path / "o.csv"
    write_table(path, rows, (YES, NO), make_table(job(known="label"), rows, [(-3.0, -0.05)] * 2))
    with path.open(newline="") as opened:
        first = next(csv.DictReader(opened))
    assert (first["label"], first["p_no"], first["kdn_label"]) == ("yes", "mine", "no")


def test_where_a_table_cannot_go_is_said_before_the_work(tmp_path: Path) -> None:
    rows = file(tmp_path, "rows.csv", "text\nx\n")
    check_out(tmp_path / "new.csv", rows)
    for out, says in (
        (tmp_path / "o.xlsx", "a table is one of"),
        (tmp_path / "no" / "o.csv", "there is no folder"),
        (rows, "these are the rows themselves"),
        (file(tmp_path, "there.csv", "x"), "is there already; --force"),
    ):
        with pytest.raises(BadInput, match=says):
            check_out(out, rows)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        check_out(tmp_path / "folder.csv", rows, force=True)
    check_out(tmp_path / "there.csv", rows, force=True)
    with pytest.raises(BadInput, match="the rows themselves"):
        check_out(rows, rows, force=True)


def test_a_table_that_cannot_be_written_is_kept_elsewhere(tmp_path: Path) -> None:
    taken = file(tmp_path, "taken", "")
    with pytest.raises(StoreError, match=r"what was made is kept as .*-out\.csv$") as caught:
        write_rows(taken / "out.csv", [{"a": "1"}])
    kept = Path(str(caught.value).rpartition(" kept as ")[2])
    assert read_rows(kept) == [{"a": "1"}]
    assert kept.stat().st_mode & 0o077 == 0, (
        "others read the folder, and not what was to be elsewhere"
    )
    kept.unlink()


def test_an_empty_column_of_parquet_is_text(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_rows(tmp_path / "o.parquet", [{"a": None, "b": 0.5}, {"a": None, "b": None}])
    assert read_rows(tmp_path / "o.parquet") == [{"a": "", "b": "0.5"}, {"a": "", "b": ""}]


def test_what_is_no_text_keeps_its_kind(tmp_path: Path) -> None:
    line = '{"id": 7, "text": "a", "on": true, "none": null, "at": [1, 2.5], "odd": {}}'
    path = tmp_path / "o.jsonl"
    write_rows(path, read_rows(file(tmp_path, "a.jsonl", line + "\n")), ["id"])
    assert path.read_text() == line + "\n"
    write_rows(tmp_path / "o.csv", read_rows(path))
    assert (tmp_path / "o.csv").read_text().splitlines()[1] == '7,a,True,,"[1, 2.5]",{}'
    pytest.importorskip("pyarrow")
    write_rows(tmp_path / "odd.parquet", read_rows(path))
    floats = {"at": "[1.0, 2.5]"}  # a list of Parquet has one kind of numbers
    assert read_rows(tmp_path / "odd.parquet") == [read_rows(tmp_path / "o.csv")[0] | floats]


def test_objects_are_texts_in_parquet(tmp_path: Path) -> None:
    """As columns each would have the keys of all, and a thousand keys would be a thousand columns."""
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = '{"m": {"a": 1}, "n": [{"b": 1}]}\n{"m": {"b": "x"}, "n": null}\n'
    write_rows(tmp_path / "o.parquet", read_rows(file(tmp_path, "a.jsonl", lines)))
    assert parquet.read_table(tmp_path / "o.parquet").to_pylist() == [
        {"m": '{"a": 1}', "n": '[{"b": 1}]'},
        {"m": '{"b": "x"}', "n": None},
    ]


def test_a_value_that_would_be_another_is_text(tmp_path: Path) -> None:
    """pyarrow makes a moment of pandas one of microseconds, and a large number beside 0.5 another one."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    at_ns = 1_700_000_000_123_456_789
    table = pa.table({"at": pa.array([at_ns], pa.timestamp("ns")), "whole": [2**53 + 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    write_rows(tmp_path / "o.parquet", [*rows, {"whole": 0.5}])
    found = read_rows(tmp_path / "o.parquet")
    assert (found[0]["at"], found[0]["whole"]) == (rows[0]["at"], str(2**53 + 1))


def test_columns_of_parquet_keep_their_kinds(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "id": [7, None],
            "on": [True, False],
            "text": ["a", None],
            "day": [dt.date(2026, 1, 2), None],
            "share": [math.nan, 0.5],
            "near": [[0.5, 1.5], []],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert rows[0]["day"] == "2026-01-02"
    write_rows(tmp_path / "o.parquet", [{**row, "p": 0.5} for row in rows])
    found = parquet.read_table(tmp_path / "o.parquet")
    assert found.drop_columns(["p"]).schema.types == table.schema.types
    assert found["id"].to_pylist() == [7, None]
    assert found["near"].to_pylist() == [[0.5, 1.5], []]
    write_rows(tmp_path / "o.jsonl", rows)
    first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["day"], first["share"]) == (7, "2026-01-02", "nan")


def test_a_column_of_several_kinds_is_one_of_texts(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = file(tmp_path, "a.jsonl", '{"id":7}\n{"id":"x"}\n{"id":null}\n')
    write_rows(tmp_path / "o.parquet", read_rows(path))
    assert read_rows(tmp_path / "o.parquet") == [{"id": "7"}, {"id": "x"}, {"id": ""}]


# --- what became of rows ---------------------------------------------------------------------


def test_a_refused_row_keeps_its_place_and_says_why(tmp_path: Path) -> None:
    rows = [{"text": "a", "truth": "yes"}, {"text": "long", "truth": "no"}]
    answers = [(-0.1, -2.4), answer_of(PromptTooLong("holds 900 tokens"))]
    table = make_table(job(known="truth"), rows, answers)
    assert table.refused == {2: "holds 900 tokens"}
    assert (table.num_known, table.accuracy, table.num_abstained) == (1, 1.0, 1)
    path = tmp_path / "o.csv"
    write_table(path, rows, (YES, NO), table)
    assert [row["label"] for row in read_rows(path)] == ["yes", ""]
    assert read_rows(path)[1]["p_yes"] == ""


@pytest.mark.parametrize(
    ("met", "known", "at_chance"),
    [
        (50, 100, True),  # of two labels, half each: 0.5 is chance
        (59, 100, True),  # within two standard errors of 0.05
        (61, 100, False),
        (5, 6, False),  # too few to say
    ],
)
def test_accuracy_at_chance_is_told(met: int, known: int, at_chance: bool) -> None:
    truth = ["yes", "no"] * (known // 2)
    rows = [{"text": "t", "truth": one} for one in truth]
    right, wrong = (-0.1, -2.4), (-2.4, -0.1)
    answers = [
        (right if (one == "yes") == (place < met) else wrong) for place, one in enumerate(truth)
    ]
    table: LabelTable = make_table(job(known="truth"), rows, list(answers))
    assert table.accuracy == pytest.approx(met / known)
    assert table.chance == 0.5
    assert table.is_at_chance is at_chance


def test_an_answer_is_written_down_as_its_log_probabilities() -> None:
    answer = ChoiceProbabilities(("a", "b"), (0.25, 0.75), usage=None)  # type: ignore[arg-type]
    assert answer_of(answer) == pytest.approx((math.log(0.25), math.log(0.75)))
