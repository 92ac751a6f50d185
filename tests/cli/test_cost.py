"""kdn cost, as its users type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdn.bench import BenchOptions, load_bench
from kdn.bench.store.policies import made_up_chats
from kdn.store.traces.recording import TraceRequest
from tests.cli.program import kdn as invoke
from tests.store.traces.written import write_trace


def answer(home: Path, *arguments: str | Path) -> Any:
    done = invoke(home, *arguments, "--json")
    assert done.code == 0, done.err
    return done.json


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    write_trace(tmp_path / "chats.jsonl.gz", made_up_chats(seed=1, chats=60))
    return tmp_path / "chats.jsonl.gz"


def test_advise_names_the_cheapest_tier_first(tmp_path: Path) -> None:
    first, *others = answer(
        tmp_path, "cost", "advise", "--context", "8000", "--reuses-per-hour", "9"
    )["tiers"]
    assert first["tier"] == "memory"
    assert first["store"]
    assert first["ratio"] < first["exact_ratio"] < 10
    assert first["published_ratio"] > first["exact_ratio"]
    assert {one["tier"] for one in others} == {"nvme", "io2", "gp3", "s3"}


def test_one_use_is_not_worth_it(tmp_path: Path) -> None:
    advice = answer(tmp_path, "cost", "advise", "--reuses-per-hour", "0")
    assert not any(one["store"] for one in advice["tiers"])


def test_sweep_draws_and_tells(tmp_path: Path) -> None:
    plot = tmp_path / "sweep.svg"
    points = answer(tmp_path, "cost", "sweep", "--over", "uses", "--tier", "nvme", "--plot", plot)[
        "points"
    ]
    assert [point["value"] for point in points] == [1, 2, 5, 10, 50]
    ratios = [point["ratio"] for point in points]
    assert ratios == sorted(ratios)
    assert plot.read_text().startswith("<?xml")


def test_a_trace_in_dollars(tmp_path: Path, chats: Path) -> None:
    shape = answer(tmp_path, "cost", "trace", "--trace", chats, "--capacity", "100")
    usd = {(run["policy"], run["tier"]): run["usd"] for run in shape["runs"]}
    assert usd["belady", "memory"] <= usd["lru", "memory"] <= usd["none", "none"]
    tiers = {tier for policy, tier in usd if policy == "lru"}
    assert tiers == {"memory", "nvme", "io2", "gp3", "s3"}


def test_storing_what_is_never_asked_again_does_not_pay(tmp_path: Path) -> None:
    """Twenty prompts of a block each, a second apart, all different; room for one block."""
    requests = [
        TraceRequest(timestamp=1000.0 * n, input_length=512, output_length=1, hash_ids=(n,))
        for n in range(20)
    ]
    write_trace(tmp_path / "once.jsonl", requests)
    asked = ("cost", "trace", "--trace", tmp_path / "once.jsonl", "--capacity", "1")
    both = ("--policy", "none", "--policy", "lru")
    none, lru = answer(tmp_path, *asked, "--tier", "io2", *both)["runs"]
    assert (none["tier"], none["capacity_bytes"]) == ("none", 0)
    assert (none["storage_usd"], none["fees_usd"]) == (0, 0)
    assert lru["fees_usd"] == pytest.approx(1040 / 730 / 3600 * 19)  # provisioned, for 19 seconds
    assert lru["usd"] > none["usd"]
    both = ("--policy", "lru", "--policy", "belady")
    lru, best = answer(tmp_path, *asked, "--tier", "s3", *both)["runs"]
    assert lru["fees_usd"] == pytest.approx(20 * 0.005 / 1000)
    assert best["fees_usd"] == pytest.approx(0.005 / 1000)  # what comes while there is room
    plans = answer(tmp_path, *asked[:1], "plan", *asked[2:], "--policy", "none")["plans"]
    assert {one["tier"] for one in plans} == {"none"}


def test_a_tier_that_is_too_small_is_said_to_be(tmp_path: Path, chats: Path) -> None:
    """4,000 blocks of 67 MB are 268 GB, and the machine has 256."""
    asked = ("cost", "trace", "--trace", chats, "--capacity", "4000", "--tier", "memory")
    done = invoke(tmp_path, *asked)
    assert "no tier that is asked about holds so much" in done.err
    assert "lru" not in done.out


def test_a_trace_without_names_has_no_hit_rate(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    rows = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    (run,) = answer(tmp_path, "cost", "trace", "--trace", path)["runs"]
    assert run["policy"] == "none"
    assert run["hit_rate"] is None
    assert run["prefill_usd"] > 0


def test_a_plan_for_ten_times_the_traffic(tmp_path: Path, chats: Path) -> None:
    plans = answer(
        tmp_path, "cost", "plan", "--trace", chats, "--slo", "5", "--capacity", "100",
        "--traffic", "1", "--traffic", "10", "--tier", "nvme",
    )["plans"]  # fmt: skip
    assert {one["traffic"] for one in plans} == {1.0, 10.0}
    assert {one["tier"] for one in plans} == {"none", "nvme"}
    assert all(one["gpus"] >= 1 and one["p95_s"] <= 5 for one in plans)


def test_a_plan_names_the_traffic_that_no_fleet_meets(tmp_path: Path, chats: Path) -> None:
    asked = ("cost", "plan", "--trace", chats, "--slo", "5", "--capacity", "100")
    found = answer(tmp_path, *asked, "--traffic", "1", "--traffic", "1e9", "--tier", "nvme")
    assert {one["traffic"] for one in found["plans"]} == {1.0}
    assert found["unmet_traffic"] == [1e9]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("cost", "advise", "--prices", "moon"), "no price sheet 'moon'"),
        (("cost", "advise", "--speed", "abacus"), "no speed 'abacus'"),
        (("cost", "sweep", "--over", "mood"), "expected one of context, uses"),
        (("cost", "sweep", "--values", "1,two"), "write numbers"),
        (("cost", "sweep", "--over", "uses", "--uses", "9"), "leave out --uses"),
        (("cost", "sweep", "--tier", "tape"), "no price for tier 'tape'"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    done = invoke(tmp_path, *arguments)
    assert done.code == 2
    assert why in done.err


def test_simulate_prints_every_policy_and_the_optimum(tmp_path: Path, chats: Path) -> None:
    plot = tmp_path / "rates.svg"
    shape = answer(
        tmp_path, "store", "simulate", "--trace", chats, "--capacity", "50", "--capacity", "1GB",
        "--plot", plot,
    )  # fmt: skip
    rates = {(run["policy"], run["capacity_blocks"]): run["hit_rate"] for run in shape["runs"]}
    assert {policy for policy, _ in rates} == {"fifo", "lru", "s3fifo", "arc", "value", "belady"}
    assert all(rates["belady", room] >= rate for (_, room), rate in rates.items())
    assert plot.exists()
    refused = invoke(tmp_path, "store", "simulate", "--trace", chats, "--capacity", "1kB")
    assert "not one block" in refused.err


def test_an_empty_store_has_cost_nothing(tmp_path: Path) -> None:
    assert answer(tmp_path, "store", "stat")["money"] == {"saved_usd": 0.0, "spent_usd": 0.0}


def test_the_policies_bench_fills_its_summary_without_data(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, made_up_chats(seed=2, chats=40))
    result = load_bench("policies")(BenchOptions(data=path, quick=True))
    assert set(result.summary) == {
        f"{key}_{size}" for key in ("value_diff", "gap_share") for size in ("2k", "8k", "30k")
    }
    assert json.dumps(result.rows)
