"""The report's rows are the results' own figures, and its verdicts are sums that one can check."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kdn_report", ROOT / "scripts" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kdn_report"] = module
    spec.loader.exec_module(module)
    return module


def put(folder: Path, bench: str, **summary: float | None) -> None:
    result: dict[str, Any] = {
        "model": "tiny",
        "commit": "abc",
        "machine": {"cores": 2, "gpu": None},
        "summary": summary,
    }
    (folder / f"{bench}.json").write_text(json.dumps(result))


def row(page: str, words: str) -> list[str]:
    [line] = [line for line in page.splitlines() if words in line and line.startswith("| ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_verdict_is_the_figure_beside_the_claims_lower_end(
    report: ModuleType, tmp_path: Path
) -> None:
    put(tmp_path, "rerank", memory_speedup=5.75)
    put(tmp_path, "jct", qps_gain_fcfs=1.5)
    put(tmp_path, "l4s", error_cut=0.1, p99_cut=-0.01, light_p99_cut=None)
    page = report.page(tmp_path)
    assert row(page, "HyperRAG")[2:6] == [
        "5.75x",
        "time of a query over stored documents",
        "[tiny](rerank.md), 2 CPU cores",
        "reached",
    ]
    assert row(page, "requests a second beside")[-1] == "same direction, smaller"
    assert row(page, "error beside")[2] == "10.0 %"
    assert row(page, "the frozen list")[-1] == "not reproduced"
    assert row(page, "lightly loaded")[-1] == "not measured here"
    assert row(page, "METIS")[-1] == "not measured here"


def test_a_processor_without_bf16_has_a_row_of_its_own(report: ModuleType, tmp_path: Path) -> None:
    """5.75 with bf16 and 1.5 in fp32: each beside the claim of 2."""
    put(tmp_path, "rerank", memory_speedup=5.75)
    put(tmp_path, "rerank-float32", memory_speedup=1.5)
    put(tmp_path, "mil-float32", mil_gain_paged=6.0)
    lines = [line for line in report.page(tmp_path).splitlines() if "HyperRAG" in line]
    assert ["5.75x" in line for line in lines] == [True, False]
    assert "[tiny](rerank-float32.md) in fp32, 2 CPU cores | same direction" in lines[1]
    assert (
        row(report.page(tmp_path), "longest input")[4]
        == "[tiny](mil-float32.md) in fp32, 2 CPU cores"
    )
    bars = report.picture(tmp_path).lines
    assert [
        bars[f"HyperRAG: time of a query over stored documents{one}"][0][1]
        for one in ("", " in fp32")
    ] == [
        pytest.approx(2.875),
        pytest.approx(0.75),
    ]


def test_every_paper_has_a_row_and_the_page_is_current(report: ModuleType) -> None:
    assert len({claim.paper for claim in report.CLAIMS}) == 10
    assert report.main(["--check"]) == 0, "run: python scripts/report.py"
