"""Traces as Azure publishes them, and as spreadsheets and scripts write them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.errors import BadInput
from kdn.store.traces.recording import read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
FIRST = "2023-11-16 18:15:46.6805900,374,44"
LATER = "2023-11-16 18:15:48.1805900,396,109"


def times(folder: Path, text: str | bytes, name: str = "t.csv") -> list[tuple[float, int, int]]:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(one.timestamp, one.input_length, one.output_length) for one in read_trace(path)]


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\r\n{FIRST}\r\n{LATER}\r\n",
        f"\ufeff{HEADER}\n{FIRST}\n{LATER}\n",
        f"timestamp, contexttokens ,GENERATEDTOKENS\n{FIRST}\n{LATER}\n",
        f"{HEADER}\n{LATER}\n\n{FIRST}\n",
        f"{HEADER}\n{FIRST.replace('374,44', '374.0,44.0')}\n{LATER}\n",
        f"{HEADER}\n2023-11-16T18:15:46.5+00:00,374,44\n2023-11-16 19:15:48+01:00,396,109\n",
        f"{HEADER}\n2023-11-16 18:15:46.5,374,44\n2023-11-16T18:15:48Z,396,109\n",
        f"{HEADER}\n374.0,374,44\n375.5,396,109\n",
        "id,GeneratedTokens,ContextTokens,Timestamp\n1,44,374,0\n2,109,396,1.5\n",
    ],
)
def test_two_requests_a_second_and_a_half_apart(tmp_path: Path, text: str) -> None:
    assert times(tmp_path, text) == [(0.0, 374, 44), (1500.0, 396, 109)]
    assert times(tmp_path, text, "t.CSV") == [(0.0, 374, 44), (1500.0, 396, 109)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("2023-11-16 18:15:46,374.5,44", "line 2: .*'374.5' is no whole number"),
        (f"{FIRST}\nyesterday,1,1", "line 3: no request"),
        (f"{FIRST}\n2023-11-16 18:15:46,1", "line 3: no request"),
        ("nan,1,1", "line 2: .*'nan' is no time"),
        ("0,-1,1", "line 2: times and lengths cannot be negative"),
        ("0,inf,1", "line 2: no request"),
        (f"0,{'9' * 5_000},1", "line 2: no request of a trace: '9{40}' is no whole number"),
    ],
)
def test_a_row_that_is_no_request_is_refused_with_its_line(
    tmp_path: Path, rows: str, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        times(tmp_path, f"{HEADER}\n{rows}\n")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ContextTokens is not among TIMESTAMP, Tokens"):
        times(tmp_path, "TIMESTAMP,Tokens\n1,2\n")
    with pytest.raises(BadInput, match="among none"):
        times(tmp_path, "")


def test_a_mark_before_json_is_no_part_of_it(tmp_path: Path) -> None:
    line = '{"timestamp": 27482, "input_length": 512, "output_length": 52, "hash_ids": [46]}\n'
    assert times(tmp_path, b"\xef\xbb\xbf" + line.encode(), "t.jsonl") == [(27482.0, 512, 52)]
