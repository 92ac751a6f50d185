"""What the benchmark of vLLM makes of its seconds, with sums by hand, and what it refuses."""

from __future__ import annotations

import pytest

from kdn.bench import BenchOptions, load_bench
from kdn.bench.common.findings import Findings
from kdn.bench.scale.vllm import SUMMARY, row_of, sum_up
from kdn.errors import BadInput

ROUNDS = {
    "no connector/new": [2.0, 4.0, 3.0],
    "no connector/own cache": [0.5, 0.5, 0.5],
    "kdn memory/new": [2.2, 4.0, 3.0],
    "kdn memory/hit": [0.5, 0.5, 0.5],
    "kdn memory/part": [1.0, 1.0, 1.0],
    "kdn disk/new": [2.2, 4.4, 3.3],
    "kdn disk/hit": [1.0, 1.0, 1.0],
    "ExampleConnector/hit": [0.9, 0.8, 1.0],
    "LMCache/hit": [1.5, 1.5],
}
"""Seconds of three rounds at 2,048 tokens; LMCache missed one, and there is no node."""


def found(samples: dict[int, dict[str, list[float]]]) -> Findings:
    findings = Findings({}, dict.fromkeys(SUMMARY), samples=samples)
    sum_up(findings, list(samples))
    return findings


def test_ratios_are_medians_of_rounds() -> None:
    """Cold over hit is 4, 8 and 6; misses cost 10, 0, 0 % in memory and 10 % each on the disk."""
    told = found({2048: ROUNDS}).summary
    assert told["hit_speedup_2048"] == 6.0
    assert told["part_speedup_2048"] == 3.0
    assert told["hit_speedup_disk"] == 3.0
    assert told["hit_speedup_example"] == 0.9
    assert told["miss_cost"] == pytest.approx(0.1)


def test_a_side_that_is_absent_leaves_its_key_without_a_number() -> None:
    told = found({2048: ROUNDS}).summary
    assert told["hit_speedup_lmcache"] is None
    assert told["blend_speedup"] is None
    quick = found({512: ROUNDS}).summary
    assert quick["hit_speedup_2048"] is None
    assert quick["hit_speedup_disk"] == 3.0


def test_a_row_has_what_its_arm_was_asked() -> None:
    ours = row_of(ROUNDS, "kdn memory", 2048)
    assert (ours["new ms"], ours["hit ms"], ours["hit in part ms"]) == (3000.0, 500.0, 1000.0)
    assert ours["a miss costs"] == 0.0
    alone = row_of(ROUNDS, "no connector", 2048)
    assert (alone["hit ms"], alone["cold over hit"], alone["a miss costs"]) == (500.0, 6.0, None)
    lost = row_of(ROUNDS, "LMCache", 2048)
    assert (lost["hit ms"], lost["cold over hit"]) == (1500.0, None)


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        (("no connector", "kdn tape"), "no arm 'kdn tape'; choose among: no connector, kdn memory"),
        (("kdn memory",), "every arm is compared with 'no connector': name it too"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(arms: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load_bench("vllm")(BenchOptions(arms=arms))
