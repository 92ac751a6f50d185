"""What commands print: nothing steers a terminal, no word is broken, --json is one object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdn.cli.show import (
    emit,
    printable,
    printed_even_early,
    say,
    size_text,
    table,
    tell,
    tell_failures,
    time_text,
    watched,
)
from kdn.errors import BadInput
from kdn.trace import NoTrace, Recorder

EVIL = "\x1b]0;PWNED\x07\x1b[31m.pdf"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode\tand\nlines", "plain, ünïcode\tand\nlines"),
        (EVIL, r"\x1b]0;PWNED\x07\x1b[31m.pdf"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08c", r"a\rb\x08c"),
        ("exe.\u202efdp", r"exe.\u202efdp"),
        ("caf\udce9.txt", r"caf\udce9.txt"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_way_out_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    tell(EVIL)
    table(EVIL, [EVIL], [[EVIL]])
    emit({EVIL: EVIL, "c1": "\x9b"})
    written = capsys.readouterr()
    assert "\x1b" not in written.out + written.err
    assert "\x9b" not in written.out


def test_json_is_one_object_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    for odd in ("\x9b\u202e\u2028", "caf\udce9.txt"):  # the second: a file's name that is no UTF-8
        emit({"name": EVIL, "path": Path("/a"), "odd": odd})
        line = capsys.readouterr().out
        assert json.loads(line) == {"name": EVIL, "path": "/a", "odd": odd}
    with pytest.raises(AssertionError):
        emit([1, 2])


def test_a_table_has_text_to_the_left_and_numbers_to_the_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table("sizes", ("tier", "blocks", "about"), [("memory", 7, "quick"), ("disk", 1200, "large")])
    assert capsys.readouterr().out.splitlines() == [
        "sizes",
        "tier    blocks  about",
        "------  ------  -----",
        "memory       7  quick",
        "disk      1200  large",
    ]


def test_a_wide_table_becomes_lines_and_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seventeen columns of ten letters need 202 places; 80 are there."""
    monkeypatch.setenv("COLUMNS", "80")
    columns = [f"column{number:04}" for number in range(17)]
    rows = [[f"cell {row} {number}" for number in range(17)] for row in range(2)]
    table("", columns, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["column0000  cell 0 0", "column0001  cell 0 1"]
    assert sum(line.startswith("column0016") for line in lines) == 2
    monkeypatch.setenv("COLUMNS", "300")
    table("", columns, rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_an_empty_table_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    table("", ("tier", "blocks"), [])
    assert capsys.readouterr().out == "tier  blocks\n----  ------\n"


def test_sizes_and_times() -> None:
    assert [size_text(n) for n in (0, 999, 1500, 2.5e9, 3e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 GB", "3 TB",
    ]  # fmt: skip
    assert [time_text(s) for s in (0.0071, 12.34, 240)] == ["7 ms", "12.3 s", "4.0 min"]


def test_failures_of_tiers_are_told_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    trace = Recorder()
    assert not tell_failures(trace)
    assert not tell_failures(NoTrace())
    for reason in ("refused", "timed out"):
        trace.event("store.failed", tier="redis", reason=reason)
    for _ in range(3):
        trace.event("store.refuse", tier="disk", key="k", reason="the disk is full")
    assert tell_failures(trace)
    assert capsys.readouterr().err.splitlines() == [
        "note: the redis tier could not be asked: timed out",
        "note: 3 blocks could not be written to the disk tier: the disk is full",
    ]


def test_what_ends_early_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the second of three is under way: one is done."""

    def end_at(last: str) -> None:
        with watched(["a", "b", "c"], "moving") as each:
            for one in each:
                if one == last:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_at("b")
    assert capsys.readouterr().err == "kdn: ended after 1 of 3 blocks\n"
    end_at("none of them")
    assert capsys.readouterr().err == ""


def test_what_is_refused_before_it_begins_says_nothing_of_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(BadInput), watched(["a", "b", "c"], "copying"):
        raise BadInput("this store has no tier 'nod'")
    assert capsys.readouterr().err == ""


def test_rows_are_printed_whether_it_ends_early_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [1]

    def end() -> None:
        with printed_even_early(lambda: tell(str(rows))):
            rows.append(2)
            raise KeyboardInterrupt

    with printed_even_early(lambda: tell(str(rows))):
        pass
    with pytest.raises(KeyboardInterrupt):
        end()
    assert capsys.readouterr().out == "[1]\n[1, 2]\n"
