"""Writes docs/benchmarks/index.md: a row per system with the paper's claim, our figure, set-up and verdict.

python scripts/report.py           writes the page from docs/benchmarks/*.json
python scripts/report.py --check   writes nothing; exit code 1 if the page is not current
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdn.plot import Figure, draw

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
KINDS = {"": "", "-float32": " in fp32"}
"""How pages end, and what that says: times of processors without bf16 have pages of their own."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the figure of ours that stands beside it."""

    system: str
    paper: str
    says: str
    least: float
    """The lower end of what it says."""
    bench: str
    """The result's file without its ending, or what it begins with where a benchmark has several."""
    key: str
    """In the result's summary."""
    what: str
    unit: str = "x"


CLAIMS = (
    Claim("CacheBlend", "2405.16444", "first token 2.2 to 3.3 times sooner than a full prefill", 2.2,
          "blend-smollm2-135m-musique", "ttft_speedup", "first token, KV in memory"),
    Claim("CacheBlend", "2405.16444", "throughput 2.8 to 5 times that of a full prefill", 2.8,
          "blend-load", "throughput_gain", "requests a second at the same time to first token"),
    Claim("KDN", "2409.13761", "stored KV in place of prefill, as a service (no number given)", 0.0,
          "store", "hit_speedup_disk", "first token from the disk, beside a full prefill"),
    Claim("DroidSpeak", "2411.02820", "prefill 1.7 to 3.1 times sooner with a sibling's KV", 1.7,
          "share", "prefill_speedup", "prefill with a sibling's KV in memory"),
    Claim("LLMSteer", "2411.13009", "1.4 to 4.8 times less delay than steering at each question", 1.4,
          "steer", "ttft_speedup_query_dependent", "first token, beside steering in two calls"),
    Claim("PrefillOnly", "2505.07203", "up to 4 times the requests a second at the same latency", 4.0,
          "jct", "qps_gain_fcfs", "requests a second beside first come, first served"),
    Claim("PrefillOnly", "2505.07203", "inputs of 130k tokens where paged prefill holds 24k (5.4 times)", 5.4,
          "mil", "mil_gain_paged", "longest input beside paged prefill"),
    Claim("HyperRAG", "2504.02921", "2 to 3 times the throughput of a decoder reranker", 2.0,
          "rerank", "memory_speedup", "time of a query over stored documents"),
    Claim("METIS", "2412.10543", "1.64 to 2.54 times less delay than AdaptiveRAG at equal F1", 1.64,
          "rag", "delay_gain_adaptive", "simulated delay beside AdaptiveRAG at equal recall"),
    Claim("Stored-KV economics", "2503.14647", "its table of delays and costs", 0.0,
          "cost", "paper_table_error", "largest error of its table, recomputed", ""),
    Claim("SwiftQueue", "2410.06112", "prediction error 45 to 65 % lower", 0.45,
          "l4s", "error_cut", "error beside the best simple predictor", "%"),
    Claim("SwiftQueue", "2410.06112", "tail latency 36 to 45 % lower than choosing by flow", 0.36,
          "l4s", "light_p99_cut", "P99 beside staying in L, lightly loaded links", "%"),
    Claim("SwiftQueue", "2410.06112", "tail latency 36 to 45 % lower than choosing by flow", 0.36,
          "l4s", "p99_cut", "P99 beside staying in L, the frozen list", "%"),
    Claim("NVC-aware congestion control", "2411.06742", "41 % less training than with safeguards", 0.41,
          "rtc", "training_time_cut", "training steps beside a safeguarded learner", "%"),
)  # fmt: skip


def page(folder: Path = FOLDER) -> str:
    """The page, from the results that are in `folder`."""
    results = _results(folder)
    lines = [
        "# Benchmarks beside the papers",
        "",
        "Made by `scripts/report.py` from the results in this folder; `make report` measures some",
        "again first. A figure that disagrees with its paper stands as it is. The papers used GPUs and",
        "models of 7 to 70 billion parameters; machine and model of each of our figures are in its row.",
        "",
        "| system | paper says | ours | of what | set-up | verdict |",
        "|---|---|---:|---|---|---|",
    ]
    lines += [row for claim in CLAIMS for row in _rows(claim, results)]
    lines += [
        "",
        "![Our figures beside the papers' claims](index-0.svg)",
        "",
        "## All results",
        "",
        "| page | model | commit | machine |",
        "|---|---|---|---|",
    ]
    for name in sorted(results):
        found = results[name]
        link = f"[{name}]({name}.md)" if (folder / f"{name}.md").exists() else name
        lines.append(f"| {link} | {found['model']} | `{found['commit']}` | {_machine(found)} |")
    return "\n".join(lines) + "\n"


def _rows(claim: Claim, results: dict[str, Any]) -> list[str]:
    """A row of each kind of processor that has the figure."""
    paper = f"{claim.system} ([{claim.paper}](https://arxiv.org/abs/{claim.paper}))"
    rows = []
    for kind, page, value in _found(claim, results):
        result = results[page]
        told = [
            paper,
            claim.says,
            _number(value, claim.unit),
            claim.what,
            f"[{result['model']}]({page}.md){KINDS[kind]}, {_machine(result)}",
            _verdict(claim, value),
        ]
        rows.append(f"| {' | '.join(told)} |")
    return rows or [f"| {paper} | {claim.says} | - | {claim.what} | - | not measured here |"]


def _found(claim: Claim, results: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """By kind, the first page in order of names whose summary has the figure."""
    for kind in KINDS:
        for page in sorted(results):
            is_own = f"{page}-".startswith(f"{claim.bench}-") and _kind(page) == kind
            value = results[page]["summary"].get(claim.key) if is_own else None
            if value is not None:
                yield kind, page, value
                break


def _kind(page: str) -> str:
    return next(kind for kind in reversed(KINDS) if page.endswith(kind))


def picture(folder: Path = FOLDER) -> Figure:
    """Our figures as multiples of the lower ends of the claims; of claims without a number, none."""
    results = _results(folder)
    values = {}
    for claim in CLAIMS:
        for kind, _, value in _found(claim, results) if claim.least > 0 else ():
            values[f"{claim.system}: {claim.what}{KINDS[kind]}"] = [(0.0, value / claim.least)]
    what = "ours over the lower end of the claim"
    return Figure("Beside the papers", "", what, values, level=1.0, is_linear=True)


def _results(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}{unit}" if unit else f"{value:.3f}"


def _verdict(claim: Claim, value: float) -> str:
    if claim.unit == "":
        return "agrees" if value < 0.05 else "differs"
    if claim.least == 0:
        return "faster" if value > 1 else "slower"
    if value >= claim.least:
        return "reached"
    neutral = 0.0 if claim.unit == "%" else 1.0
    return "same direction, smaller" if value > neutral else "not reproduced"


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return machine.get("gpu") or f"{machine['cores']} CPU cores"


def main(arguments: Sequence[str]) -> int:
    """Writes, or checks."""
    place, text = FOLDER / "index.md", page()
    if "--check" in arguments:
        current = place.exists() and place.read_text("utf-8") == text
        return 0 if current else 1
    place.write_text(text, "utf-8")
    draw(picture(), FOLDER / "index-0.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
