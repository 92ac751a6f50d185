"""Batches on a real Ray of this machine, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import kdn
from kdn.errors import BadInput, UnknownModel
from kdn.rank import read_rows
from kdn.store import open_store
from tests.cli.program import Done, finish, start
from tests.cli.program import kdn as run
from tests.store.remotes import node_server

pytest.importorskip("ray", reason="Ray is not installed (pip install 'kdn[ray]')")

from kdn.scale.ray import (
    BatchSettings,
    LabelBatch,
    PrefillBatch,
    RerankBatch,
    RowResult,
    run_batch,
)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # what Ray and pandas warn of is theirs
]
TEMPLATE = "Is it about a ship?\n{text}"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(max_position_embeddings=1024)


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"Line {number} of the ferry's log"} for number in range(count)]


def actor_processes() -> list[int]:
    """The processes of actors that hold an engine, on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            name = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except OSError:
            continue
        if name.startswith(b"ray::") and b"Map" in name:
            found.append(int(folder.name))
    return found


def test_a_killed_actor_loses_no_row_and_repeats_none(model: Path, tmp_path: Path) -> None:
    table = rows(120)
    job = LabelBatch(TEMPLATE, ("Yes", "No"))
    settings = BatchSettings(str(model), str(tmp_path), dtype="float32", batch_rows=5)
    killed: list[int] = []

    def kill_once(came: Mapping[int, RowResult]) -> None:
        if not killed:
            killed.extend(actor_processes()[:1])
            assert killed, "no actor is found to be killed"
            os.kill(killed[0], signal.SIGKILL)

    found = run_batch(table, job, settings, on_rows=kill_once)
    assert killed
    assert found.failed == {}
    assert [row["text"] for row in found.rows] == [row["text"] for row in table]
    with kdn.open(model, home=tmp_path / "own", dtype="float32") as own:
        expected = own.label(table, TEMPLATE, ("Yes", "No"))
    assert [row["label"] for row in found.rows] == [one.label for one in expected.labelled]
    for row, one in zip(found.rows, expected.labelled, strict=True):
        assert (row["p_Yes"], row["p_No"]) == pytest.approx(one.probabilities, rel=1e-4)


def test_a_batch_that_was_stopped_sends_only_the_rows_that_are_missing(
    model: Path, tmp_path: Path
) -> None:
    """Ctrl-C comes after the first block of 5 of 20 rows; then all are done, and Ray is not asked."""
    settings = BatchSettings(str(model), str(tmp_path), dtype="float32", batch_rows=5)
    done, later = dict[int, RowResult](), dict[int, RowResult]()

    def stop(came: Mapping[int, RowResult]) -> None:
        done.update(came)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(rows(20), PrefillBatch(), settings, on_rows=stop)
    assert len(done) == 5
    found = run_batch(rows(20), PrefillBatch(), settings, done=done, on_rows=later.update)
    assert sorted(later) == [number for number in range(20) if number not in done]
    assert [row["text"] for row in found.rows] == [row["text"] for row in rows(20)]
    assert all(row["num_tokens"] > 0 for row in found.rows)
    nowhere = replace(settings, address="127.0.0.1:9")
    assert run_batch(rows(20), PrefillBatch(), nowhere, done=done | later) == found


def stopped(signum: int, home: Path, out: Path, *asked: str | Path) -> tuple[Done, int]:
    """Stop a command once its journal has rows; how it ended, and how many rows are kept."""
    journal = out.with_name(f"{out.name}.journal")
    before = journal.read_text().count("\n") if journal.exists() else 1
    program = start(home, *asked)
    while program.poll() is None:
        if journal.exists() and journal.read_text().count("\n") > before:
            program.send_signal(signum)
            break
        with suppress(subprocess.TimeoutExpired):
            program.wait(0.02)
    done = finish(program)
    assert not out.exists()
    return done, journal.read_text().count("\n") - 1


def test_a_command_that_is_stopped_or_killed_goes_on_where_it_was(
    model: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then a kill, then the rest: the table is that of one engine at one go."""
    data, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    texts = [f"{number} {'card ' * 150}" for number in range(80)]
    data.write_text("\n".join(["text", *texts]) + "\n")
    options = ("--model", model, "--dtype", "float32", "--batch-rows", "2", "--json")
    prefill = ("batch", "prefill", data, "-o", out, *options)
    ended, first = stopped(signal.SIGINT, tmp_path, out, *prefill)
    assert ended.code == 130
    kept = f"ended early: {out}.journal keeps {first} of 80 rows, and the same command goes on"
    assert kept in ended.err
    killed, second = stopped(signal.SIGKILL, tmp_path, out, *prefill)
    assert killed.code == -signal.SIGKILL
    assert f"going on with {first} of 80 rows from" in killed.err
    assert 0 < first < second < 80
    done = run(tmp_path, *prefill)
    assert done.code == 0, done.err
    assert done.json["resumed"] == second
    assert not list(tmp_path.glob("*.journal"))
    with kdn.open(model, home=tmp_path / "own", dtype="float32") as own:
        expected = [str(own.prefill(text)) for text in texts]
    assert [(row["text"], row["num_tokens"]) for row in read_rows(out)] == list(
        zip(texts, expected, strict=True)
    )


def test_the_command_keeps_errors_beside_their_rows(model: Path, tmp_path: Path) -> None:
    """Two engines share one store; a text that is too long and an empty one fail alone."""
    parquet = pytest.importorskip("pyarrow.parquet")
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    texts = [f"Harbour {number}. " * 20 for number in range(8)] + ["x" * 4000, ""]
    told = [{"text": text, "error": "theirs", "id": at} for at, text in enumerate(texts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in told))
    options = ("--model", model, "--actors", "2", "--cpus", "0.5", "--batch-rows", "3")
    done = run(tmp_path, "batch", "prefill", data, "-o", out, *options, "--json")
    assert done.code == 0, done.err
    assert [one["row"] for one in done.json["failed"]] == [9, 10]
    assert "context" in done.json["failed"][0]["reason"]
    written = read_rows(out)
    assert [row["text"] for row in written] == texts
    assert {row["error"] for row in written} == {"theirs"}
    assert parquet.read_table(out)["id"].to_pylist() == list(range(10)), "a number stays one"
    assert [bool(row["kdn_error"]) for row in written] == 8 * [False] + [True, True]
    with kdn.open(model, home=tmp_path) as own:
        match, num_tokens = own.lookup(texts[0])
    assert match.num_tokens == num_tokens


def test_rows_are_scored_as_by_a_ranking(model: Path, tmp_path: Path) -> None:
    table = [
        {"query": query, "document": document}
        for query in ("ships", "bread")
        for document in ("A ferry leaves.", "A loaf.", "")
    ]
    settings = BatchSettings(str(model), str(tmp_path), dtype="float32")
    found = run_batch(table, RerankBatch(), settings)
    assert found.columns == ("query", "document", "score", "log_odds", "error")
    with kdn.open(model, home=tmp_path / "own", dtype="float32") as own:
        ranked = {
            one.index: one.score for one in own.rerank("bread", ["A ferry leaves.", "A loaf."])
        }
    assert [row["score"] for row in found.rows[3:5]] == pytest.approx(
        [ranked[0], ranked[1]], rel=1e-4
    )
    assert (found.rows[5]["score"], found.rows[5]["log_odds"]) == (0.0, None)


def test_what_cannot_be_run_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no column is called 'title'; the columns are text"):
        run_batch(rows(1), PrefillBatch("title"), BatchSettings())
    with pytest.raises(BadInput, match="row 2 has no 'text'"):
        run_batch([{"text": "a"}, {"other": "b"}], PrefillBatch(), BatchSettings())
    with pytest.raises(BadInput, match="two choices or more, not 1"):
        run_batch(rows(1), LabelBatch("{text}", ("a",)), BatchSettings())
    with pytest.raises(BadInput, match="needs an actor, a row"):
        BatchSettings(actors=0)
    with pytest.raises(UnknownModel, match="no model goes by 'gpt-9' here"):
        run_batch(rows(1), PrefillBatch(), BatchSettings("gpt-9", home=str(tmp_path)))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", "Connection refused"),
        ("ray://127.0.0.1:9", "Connection refused"),
        ("127.0.0.1:head", "could not be cast"),
        ("nonsense", "Invalid address format"),
    ],
)
def test_an_address_of_no_ray_is_one_sentence(tmp_path: Path, address: str, reason: str) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text\na\n")
    done = run(
        *(tmp_path, "batch", "prefill", data, "-o", tmp_path / "out.csv", "--address", address)
    )
    assert done.code == 2
    assert "Traceback" not in done.err
    (sentence,) = [line for line in done.err.splitlines() if line.startswith("kdn: ")]
    assert sentence.startswith(f"kdn: no Ray answers at {address!r} (")
    assert reason in sentence
    assert sentence.endswith("start one with `ray start --head`, or leave the address out")


def test_a_server_that_is_no_ray_is_told_at_once(tmp_path: Path) -> None:
    """A Ray client would ask an HTTP server for minutes."""
    with open_store(tmp_path / "node") as store, node_server(store) as url:
        address = url.removeprefix("http://")
        with pytest.raises(BadInput, match="what listens there is no Ray"):
            run_batch(rows(1), PrefillBatch(), BatchSettings(address=address))


def test_a_table_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "batch", "prefill", tmp_path / "none.csv", "-o", tmp_path / "out.csv")
    assert done.code == 2
    assert "none.csv' does not exist" in done.err
