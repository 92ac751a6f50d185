"""Records of what codecs do to a model: whole and about this model, or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdn.core import Fingerprint
from kdn.errors import StoreError
from kdn.reuse.codec_quality import CodecQuality, QualityRecord, load_record, save_record

MODEL = Fingerprint("0123abcd")
INT8 = CodecQuality(kl=0.01, kl_p99=0.2, changed_share=0.02, gain=1.9)
RECORD = QualityRecord(
    model="m",
    fingerprint=MODEL,
    positions=400,
    context_tokens=512,
    wall_s=0,
    kl_wrong_document=2,
    kl_no_context=3,
    codecs={"int8": INT8},
)


def test_a_record_comes_back_for_its_model_alone(tmp_path: Path) -> None:
    path = save_record(tmp_path, RECORD)
    assert load_record(tmp_path, MODEL) == RECORD
    other = Fingerprint("f" * 8)
    assert load_record(tmp_path, other) is None
    path.with_name(f"{other}.json").write_bytes(path.read_bytes())
    assert load_record(tmp_path, other) is None, "the file says that it is about another model"


@pytest.mark.parametrize(
    "change",
    [
        {"kl": -0.1},
        {"kl": None},
        {"gain": 0},
        {"gain": -2},
        {"changed_share": 1.5},
        {"kl_p99": "0.1"},
        {"unknown": 1},
    ],
)
def test_numbers_that_no_measurement_gives_are_no_record(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """A KL below 0 would be within every limit, and a gain of 0 is divided by."""
    path = save_record(tmp_path, RECORD)
    content = json.loads(path.read_text())
    content["codecs"]["int8"] |= change
    path.write_text(json.dumps(content))
    assert load_record(tmp_path, MODEL) is None


@pytest.mark.parametrize("kept", [0, 1, 50, -2])
def test_a_file_cut_short_is_no_record_and_is_written_again(tmp_path: Path, kept: int) -> None:
    path = save_record(tmp_path, RECORD)
    path.write_bytes(path.read_bytes()[:kept])
    assert load_record(tmp_path, MODEL) is None
    save_record(tmp_path, RECORD)
    assert load_record(tmp_path, MODEL) == RECORD


def test_a_folder_in_its_place_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "calibration" / f"{MODEL}.json").mkdir(parents=True)
    assert load_record(tmp_path, MODEL) is None


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no model's fingerprint"):
        load_record(tmp_path, Fingerprint("../../etc/passwd"))
