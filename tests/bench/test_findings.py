"""A long benchmark goes on where it was ended; and the arithmetic of when asking pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdn.bench import BenchOptions, load_bench
from kdn.bench.common.findings import Findings, go_on
from kdn.bench.common.kept import add_kept, begin_kept, read_kept
from kdn.bench.common.result import Row
from kdn.bench.store.store import SUMMARY, TTFT, _break_even, _slowest_mb_s, figures_of
from kdn.errors import BadInput, EngineFailed

CONFIG = {"seed": 0, "quick": False}


def run(file: Path, calls: list[str]) -> Findings:
    """Three parts, of which the second always fails."""
    found = Findings.open(file, dict(CONFIG), {"speed": None})

    def first() -> None:
        calls.append("first")
        found.rows.append({"side": "a"})

    def second() -> None:
        calls.append("second")
        raise EngineFailed("no such machine")

    def third() -> None:
        calls.append("third")

    go_on(found, [("first", first), ("second", second), ("third", third)], file)
    return found


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    file, calls = tmp_path / "rows.json", list[str]()
    run(file, calls)
    found = run(file, calls)
    assert calls == ["first", "second", "third", "second"]
    assert found.rows == [{"side": "a"}]
    assert found.done == ["first", "third"]
    assert found.notes == ["second was not measured: no such machine"]


def test_findings_of_another_question_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    Findings(dict(CONFIG), {}, samples={1024: {"memory": [0.5]}}).save(file)
    assert Findings.open(file, dict(CONFIG), {}).samples == {1024: {"memory": [0.5]}}
    with pytest.raises(BadInput, match="name another"):
        Findings.open(file, {**CONFIG, "seed": 1}, {})
    file.write_text("{}")
    with pytest.raises(BadInput, match="holds no findings"):
        Findings.open(file, dict(CONFIG), {})


@pytest.mark.parametrize("name", ["blend", "ndcg"])
def test_rows_of_another_model_seed_or_size_are_refused(name: str, tmp_path: Path) -> None:
    """The seed names other documents alike, and a quick run ranks five candidates in place of twenty."""
    asked = BenchOptions(model="one", rows=tmp_path / "rows.jsonl")
    begin_kept(asked)
    add_kept(asked.rows, {"name": "shipped/0", "arms": {}})
    begin_kept(asked)
    assert kept(asked.rows) == [{"name": "shipped/0", "arms": {}}]
    for other in (replace(asked, model="two"), replace(asked, seed=1), replace(asked, quick=True)):
        with pytest.raises(BadInput, match=r"rows\.jsonl holds rows of .* give another file"):
            load_bench(name)(other)


@pytest.mark.parametrize(
    ("name", "only"), [("blend", None), ("ndcg", None), ("steer", None), ("rag", "quality")]
)
def test_rows_of_another_dtype_are_refused(name: str, only: str | None, tmp_path: Path) -> None:
    """Answers in bf16 and in fp32 differ: one page of both would say nothing of either."""
    data = tmp_path if name == "steer" else None
    asked = BenchOptions(model="one", data=data, rows=tmp_path / "rows.jsonl", only=only)
    add_kept(asked.rows, {"rows of": {"dtype": "float8"}})
    with pytest.raises(BadInput, match=r"'dtype': 'float8'.* give another file"):
        load_bench(name)(asked)
    add_kept(other := tmp_path / "old.jsonl", {"rows of": {"model": "one", "seed": 0}})
    begin_kept(replace(asked, rows=other))


def kept(file: Path | None) -> list[Any]:
    found: list[Any] = []
    read_kept(file, found.append)
    return found


def test_rows_that_do_not_tell_what_they_are_of_are_taken_as_they_stand(tmp_path: Path) -> None:
    """As pages were made of that have no such line."""
    asked = BenchOptions(model="one", rows=tmp_path / "rows.jsonl")
    add_kept(asked.rows, {"name": "shipped/0", "arms": {}})
    begin_kept(asked)
    begin_kept(replace(asked, model="two"))
    assert kept(asked.rows) == [{"name": "shipped/0", "arms": {}}]


def test_rows_of_quality_are_no_profile_of_layers(tmp_path: Path) -> None:
    asked = BenchOptions(model="one", rows=tmp_path / "rows.jsonl", only="layers")
    add_kept(asked.rows, {"name": "shipped/50", "arms": {}})
    with pytest.raises(BadInput, match="no rows of this benchmark"):
        load_bench("blend")(asked)


def test_from_what_link_on_asking_pays() -> None:
    # 100 MB in place of 2 s of computing: 50 MB/s where the blocks are always there
    assert _slowest_mb_s(100, 2.0, 1.0, 0.02) == pytest.approx(50)
    # there one time in ten, and a miss costs 2%: 0.1 x + 0.9 * 1.02 * 2 = 2, so x = 1.64 s
    assert _slowest_mb_s(100, 2.0, 0.1, 0.02) == pytest.approx(100 / 1.64)
    # with misses at 20% of a prefill nothing is quick enough
    assert _slowest_mb_s(100, 2.0, 0.1, 0.2) is None


def test_the_curve_is_drawn_of_what_was_measured() -> None:
    found = Findings(
        dict(CONFIG), dict.fromkeys(SUMMARY), samples={1000: {"recompute": [1.0], "memory": [0.1]}}
    )
    (row,) = _break_even(20_000, found)
    assert row["always there"] == pytest.approx(20)
    assert row["speedup at 100 MB/s"] == pytest.approx(5)
    assert row["speedup at 3000 MB/s"] == pytest.approx(10)
    first: Row = {"part": TTFT, "side": "memory", "tokens": 1000, "speedup": 10.0, "spread": "9-11"}
    times, links = figures_of([row, first])
    assert times.lines == {"memory": [(1000.0, 10.0)]}
    assert times.intervals == {"memory": [(9.0, 11.0)]}
    [(tokens, mb_per_s)] = links.lines["always there"]
    assert tokens == 1000
    assert mb_per_s == pytest.approx(20)
    assert figures_of([]) == ()
