"""The journal of a batch, without Ray: what is the same batch, and what counts as done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kdn.errors import BadInput
from kdn.scale.ray import (
    BatchJob,
    BatchJournal,
    BatchSettings,
    LabelBatch,
    PrefillBatch,
    RowResult,
)

ROWS = [{"text": text} for text in ("a", "b", "c")]
PREFILL, LABEL = PrefillBatch(), LabelBatch("Is it {text}?", ("yes", "no"))
SETTINGS = BatchSettings("/models/tiny", dtype="float32", address="10.0.0.1:6379")
"""Of a cluster: this machine need not have the model."""
DONE: dict[int, RowResult] = {
    2: {"num_tokens": 7},
    0: {"error": "the prompt holds too many tokens"},
}


def done(
    path: Path,
    rows: list[dict[str, str]] = ROWS,
    job: BatchJob = PREFILL,
    settings: BatchSettings = SETTINGS,
    *,
    force: bool = False,
) -> dict[int, RowResult]:
    """What a batch goes on from."""
    with closing(BatchJournal(path, rows, job, settings, force=force)) as journal:
        return journal.done


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of rows 2 and 0 of three."""
    path = tmp_path / "out.csv.journal"
    begun = BatchJournal(path, ROWS, PREFILL, SETTINGS)
    begun.add(*DONE.items())
    begun.close()
    return path


def test_rows_are_done_in_any_order_and_a_torn_line_is_not(path: Path) -> None:
    path.write_text(path.read_text() + '[1, {"num_tok')
    again = BatchJournal(path, ROWS, PREFILL, SETTINGS)
    assert again.done == DONE
    again.add((1, {"num_tokens": 5}))
    again.close()
    assert done(path) == {**DONE, 1: {"num_tokens": 5}}


def test_how_many_engines_there_are_and_where_makes_no_other_labels(tmp_path: Path) -> None:
    path, first = tmp_path / "out.csv.journal", (0, {"label": "yes", "p_yes": 1.0, "p_no": 0.0})
    with closing(BatchJournal(path, ROWS, LABEL, SETTINGS)) as begun:
        begun.add(first)
    elsewhere = replace(
        SETTINGS, address="10.0.0.2:6379", actors=4, cpus=0.5, gpus=1, batch_rows=2, home="/kdn"
    )
    assert done(path, job=LABEL, settings=elsewhere) == dict([first])


def test_kv_is_stored_again_where_another_store_is_to_have_it(path: Path) -> None:
    assert done(path, settings=replace(SETTINGS, actors=4, batch_rows=2)) == DONE
    for other in (replace(SETTINGS, address="10.0.0.2:6379"), replace(SETTINGS, home="/kdn")):
        with pytest.raises(BadInput, match="holds 2 results of another run"):
            BatchJournal(path, ROWS, PREFILL, other)


def test_a_model_of_this_machine_with_other_weights_makes_another_batch(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    """The same path, written again: one run's table never holds the labels of two models."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    path, settings = tmp_path / "out.csv.journal", BatchSettings(str(model))
    with closing(BatchJournal(path, ROWS, LABEL, settings)) as begun:
        begun.add((0, {"error": "too long"}))
    assert done(path, job=LABEL, settings=settings) == {0: {"error": "too long"}}
    os.utime(model / "model.safetensors", ns=(10**18, 10**18))
    with pytest.raises(BadInput, match="holds 1 result of another run"):
        BatchJournal(path, ROWS, LABEL, settings)


@pytest.mark.parametrize(
    ("rows", "job", "settings"),
    [
        (ROWS[:2], PREFILL, SETTINGS),
        (ROWS, PrefillBatch(salt="b"), SETTINGS),
        (ROWS, LABEL, SETTINGS),
        (ROWS, PREFILL, replace(SETTINGS, model="/models/other")),
        (ROWS, PREFILL, replace(SETTINGS, dtype="bfloat16")),
        (ROWS, PREFILL, replace(SETTINGS, device="cuda")),
        (ROWS, PREFILL, replace(SETTINGS, quantization="int4")),
    ],
)
def test_another_batch_is_refused_and_with_force_begun(
    path: Path, rows: list[dict[str, str]], job: BatchJob, settings: BatchSettings
) -> None:
    with pytest.raises(BadInput, match=r"holds 2 results of another run: .* --force discards them"):
        BatchJournal(path, rows, job, settings)
    assert done(path) == DONE, "a refusal takes nothing away"
    assert done(path, rows, job, settings, force=True) == {}


def test_labels_of_another_template_or_of_other_choices_are_another_batch(tmp_path: Path) -> None:
    path = tmp_path / "out.csv.journal"
    begun = BatchJournal(path, ROWS, LABEL, SETTINGS)
    begun.add((0, {"label": None, "p_yes": 0.5, "p_no": 0.5}))
    begun.close()
    for job in (
        LabelBatch("Was it {text}?", ("yes", "no")),
        LabelBatch("Is it {text}?", ("yes", "maybe")),
        LabelBatch("Is it {text}?", ("yes", "no"), threshold=0.9),
    ):
        with pytest.raises(BadInput, match="holds 1 result of another run"):
            BatchJournal(path, ROWS, job, SETTINGS)


@pytest.mark.parametrize(
    "line",
    ["}{", "3", "[1]", '[3, {"num_tokens": 1}]', '[1, {"label": "yes"}]', '["1", {"error": ""}]'],
)
def test_a_damaged_line_is_one_sentence(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput, match=r"out\.csv\.journal is damaged .*; remove it, and the rows"):
        BatchJournal(path, ROWS, PREFILL, SETTINGS)
