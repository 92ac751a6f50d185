"""Files that nest a hundred thousand levels deep: a reader refuses them in one line, or finds nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.calibration.key_bias import load_key_bias
from kdn.config import load_config
from kdn.core import Fingerprint
from kdn.cost import load_jct, load_sheet
from kdn.errors import KdnError
from kdn.machine.doctor import measured_dtype
from kdn.rank import find_template
from kdn.reuse.blend.record import read_records
from kdn.reuse.codec_quality import load_record
from kdn.store.traces.recording import read_trace

LEVELS = 100_000
JSON = '{"timestamp": 1, "input_length": 1, "fingerprint": "f", "more": ' + "[" * LEVELS
TOML = "more = " + "[" * LEVELS
PACKED = b"\x81\xa4more" + b"\x91" * LEVELS
"""In msgpack: a map of one entry, and arrays of one item."""


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("trace.jsonl", JSON, read_trace),
        ("jct.json", JSON, load_jct),
        ("guard.json", JSON, read_records),
        ("calibration/f.json", JSON, lambda path: load_record(path.parents[1], Fingerprint("f"))),
        ("doctor.json", JSON, lambda path: measured_dtype(path.parent, "cpu")),
        ("drift/f.msgpack", PACKED, lambda path: load_key_bias(path.parents[1], Fingerprint("f"))),
        ("prices.toml", TOML, lambda path: load_sheet(str(path))),
        ("template.toml", TOML, find_template),
        ("kdn.toml", TOML, lambda path: load_config({"KDN_CONFIG": str(path)})),
    ],
)
def test_depth_is_no_way_to_end_a_reader(
    name: str, content: str | bytes, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal = f"nothing in {path.stem}"
    try:
        assert not read(path)
    except KdnError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1
    assert path.stem in refusal, "it names the file"
