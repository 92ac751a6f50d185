"""Workloads and memory counts of the one-token benchmarks, small enough to check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.bench import Result
from kdn.bench.common.memory import peak_bytes
from kdn.bench.jobs.jobs import Posts, credit_jobs, credit_lengths, post_jobs, with_arrivals
from kdn.bench.jobs.mil import ARMS, LengthProbe
from kdn.clock import SystemClock
from kdn.engine import JobMemory, measured_memory
from kdn.model import load_model
from kdn.model.attention import TorchAttention


def test_posts_of_a_user_share_a_profile() -> None:
    jobs = post_jobs(Posts(users=3, posts=4, profile_mean=200, profile_spread=10), seed=1)
    assert len(jobs) == 12
    assert {job.prefix for job in jobs} == {"u0", "u1", "u2"}
    assert all(20 <= job.num_tokens - job.num_prefix <= 30 for job in jobs)
    assert jobs == post_jobs(Posts(3, 4, 200, 10), seed=1)


def test_arrivals_keep_their_pattern_at_every_rate() -> None:
    jobs = post_jobs(Posts(users=5, posts=10), seed=0)
    slow, fast = (with_arrivals(jobs, "spread", rate, 3) for rate in (1.0, 10.0))
    assert [job.id for job in slow] == [job.id for job in fast]
    for one, other in zip(slow, fast, strict=True):
        assert one.arrival_ns == pytest.approx(10 * other.arrival_ns, abs=10)
    assert slow[-1].arrival_ns / 1e9 == pytest.approx(50, rel=0.5), "50 jobs, one a second"
    bursts = with_arrivals(jobs, "bursty", 1.0, 3)
    assert len({job.arrival_ns for job in bursts}) == 5
    assert all(len({j.arrival_ns for j in bursts if j.prefix == f"u{u}"}) == 1 for u in range(5))


def test_credit_checks_share_the_instruction_only(tmp_path: Path) -> None:
    record = " ".join(["A11"] * 20 + ["1"])
    (tmp_path / "german.data").write_text(f"{record}\n" * 3)
    lengths = credit_lengths(tmp_path / "german.data", lambda text: tuple(text.encode()), 4, 0)
    case = credit_lengths(tmp_path / "german.data", lambda _: (1,), 4, 0)
    assert all(25 <= count <= 41 for count in case), (
        "one token a case: the case and 24 to 40 others"
    )
    assert [a // b for a, b in zip(lengths, case, strict=True)] == [lengths[0] // case[0]] * 4
    jobs = credit_jobs([1000, 2000], 60)
    assert [(job.num_prefix, job.num_tokens) for job in jobs] == [(60, 1060), (60, 2060)]
    assert len(credit_lengths(None, lambda _: (), 7, 0)) == 7


def test_a_peak_is_what_existed_at_once() -> None:
    """Two tensors of 4 MB that follow each other, and two that stand together."""

    def after_each_other() -> None:
        torch.zeros(10**6).sum()
        torch.zeros(10**6).sum()

    def together() -> None:
        a, b = torch.zeros(10**6), torch.zeros(10**6)
        a.add_(b)

    assert peak_bytes(after_each_other) == pytest.approx(4e6, rel=0.01)
    assert peak_bytes(together) == pytest.approx(8e6, rel=0.01)


def test_the_hybrid_holds_less_than_every_other_way(tiny_model: Callable[..., Path]) -> None:
    """16 layers of KV against one, and an inner width of 1,024 that only a chunk of rows ever has."""
    folder = tiny_model("llama", num_hidden_layers=16, intermediate_size=1024)
    model = load_model(folder, cache_dir=folder, dtype="float32", device="cpu")
    probe = LengthProbe(model, TorchAttention(), SystemClock(), 0)
    peaks = {arm.name: probe.peak(arm, 1024) for arm in ARMS}
    assert peaks["hybrid"] < min(peaks[n] for n in ("whole KV", "chunked prefill", "drop KV only"))
    memory = measured_memory(lambda rows: 100 * rows, 256, 512)
    assert "which fits" in probe.refusal(JobMemory(memory.token_bytes * 1000, 0.0))


@pytest.mark.slow
def test_jobs_on_a_tiny_model(benched: Callable[[str], Result]) -> None:
    result = benched("jct")
    assert all(value is not None for value in result.summary.values())
    assert {row["policy"] for row in result.rows if row["what"] == "live"} == {
        "fcfs",
        "shortest-miss",
        "families",
    }
