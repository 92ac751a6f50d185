"""One-token jobs: workloads, arrivals and gains that one can count on one's fingers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from kdn.bench.common.result import Row
from kdn.bench.jobs.grid import (
    FCFS,
    OURS,
    PAPER,
    PREFLOW,
    RIVAL,
    Cell,
    Gains,
    _qps_gain,
    cell_of,
    mean_latency_figure,
    shown,
    simulated,
    throughput,
)
from kdn.bench.jobs.jobs import Posts, credit_jobs, credit_lengths, post_jobs, with_arrivals
from kdn.bench.jobs.label import _apart, _banking, _clinc, _intents, _Task
from kdn.core import JctModel, Prompt, Role, Segment
from kdn.rank import Choice
from kdn.schedule import Ended, PrefixJob

S = 1_000_000_000
MS_A_TOKEN = JctModel(pass_s=0.0, token_s=0.001, pair_s=0.0, cached_s=0.0)


def test_a_cell_counts_from_the_first_arrival_to_the_last_end() -> None:
    """Latencies 2, 4 and 9 s over a span of 10 s; the last one waited 6 s of its 9."""
    ended = [
        Ended("a", 1 * S, 1 * S, 3 * S, 0),
        Ended("b", 1 * S, 3 * S, 5 * S, 100),
        Ended("c", 2 * S, 8 * S, 11 * S, 28),
    ]
    cell = cell_of(ended)
    assert cell == Cell(
        mean_s=5.0, p50_s=4.0, p99_s=9.0, per_s=0.3, hit_tokens=128, longest_wait_s=6.0
    )
    assert shown(cell)["hit tokens"] == 128


def cell(mean_s: float, p99_s: float) -> Cell:
    return Cell(mean_s, mean_s, p99_s, 1.0, 0, 0.0)


def test_the_gain_is_the_last_load_before_either_latency_is_worse() -> None:
    """At load 1 FCFS has 10 s and 20 s. Ours keeps both at 2, the mean at 3, and both again at 4."""
    ours = {1.0: cell(5, 9), 2.0: cell(10.1, 20.3), 3.0: cell(10, 21), 4.0: cell(1, 1)}
    assert _qps_gain(cell(10, 20), 1.0, ours) == 2.0
    assert _qps_gain(cell(10, 20), 0.5, ours) == 4.0
    assert _qps_gain(cell(1, 1), 2.0, ours) == 0.5, "never as good: the least load that was tried"


def test_a_row_of_the_grid_has_geometric_means() -> None:
    row = Gains("posts", "bursty", 5, (1.0, 4.0), (1.0, 1.0), (2.0, 8.0), (3.0,)).row()
    assert (row["qps gain"], row["qps gain, best"], row["qps gain, worst"]) == (2.0, 4.0, 1.0)
    assert row["mean gain, spf"] == pytest.approx(4.0)


def test_short_jobs_first_is_quicker_in_the_mean_and_no_quicker_in_all() -> None:
    """At a token a ms, b (100) and a (300) come while z (100) runs until 100 ms.

    As they came a ends at 400 and b at 500 ms; the short one first, b ends at 200 and a at 500 ms.
    """
    coming = (("z", 0, 100), ("a", 10_000_000, 300), ("b", 10_000_000, 100))
    jobs = [PrefixJob(name, at_ns, name, 0, size) for name, at_ns, size in coming]
    first = simulated(jobs, FCFS, MS_A_TOKEN, 0)
    assert first.mean_s == pytest.approx((0.1 + 0.39 + 0.49) / 3)
    assert (first.longest_wait_s, first.per_s) == (0.39, 6.0)
    for policy in (RIVAL, PREFLOW, PAPER, OURS):
        found = simulated(jobs, policy, MS_A_TOKEN, 0)
        assert found.mean_s == pytest.approx((0.1 + 0.19 + 0.49) / 3)
        assert found.per_s == 6.0
    assert throughput(jobs, "spread", MS_A_TOKEN, 0, seed=1) == pytest.approx(3 / 0.5)


def test_a_prefix_that_stays_in_the_cache_is_computed_once() -> None:
    """Two prompts of 512 shared and 300 own tokens: 812 ms and 300 ms; without room, 812 ms twice."""
    jobs = [PrefixJob(name, 0, "u", 512, 812) for name in "ab"]
    assert simulated(jobs, FCFS, MS_A_TOKEN, 512).hit_tokens == 512
    assert simulated(jobs, FCFS, MS_A_TOKEN, 512).mean_s == pytest.approx((0.812 + 1.112) / 2)
    assert simulated(jobs, FCFS, MS_A_TOKEN, 0).mean_s == pytest.approx((0.812 + 1.624) / 2)


def test_posts_of_a_user_share_the_profile_and_nothing_else() -> None:
    jobs = post_jobs(Posts(users=3, posts=4, profile_mean=500.0, profile_spread=0.0), seed=1)
    assert len(jobs) == len({job.id for job in jobs}) == 12
    assert {job.prefix for job in jobs} == {"u0", "u1", "u2"}
    assert {job.num_prefix for job in jobs} == {500}
    assert all(20 <= job.num_tokens - job.num_prefix <= 30 for job in jobs)
    short = post_jobs(Posts(1, 1, profile_mean=-1000.0), seed=0)
    assert short[0].num_prefix == 64, "no profile is shorter than 64 tokens"


def test_the_mean_profile_is_as_long_as_it_is_said_to_be() -> None:
    jobs = post_jobs(Posts(users=400, posts=1), seed=3)
    assert sum(job.num_prefix for job in jobs) / 400 == pytest.approx(1400, abs=5 * 300 / 20)
    assert jobs == post_jobs(Posts(users=400, posts=1), seed=3) != post_jobs(Posts(400, 1), seed=4)


def test_an_application_is_its_case_and_24_to_40_others(tmp_path: Path) -> None:
    """All cases have the same length here: 21 fields with their names, a token a letter."""
    file = tmp_path / "german.data"
    file.write_text("\n".join([" ".join(["A11"] * 21)] * 3) + "\n\n")
    sizes = set[int]()

    def encode(text: str) -> tuple[int, ...]:
        assert text.startswith("checking account: A11; months: A11")
        assert text.endswith("outcome: A11\n")
        sizes.add(len(text))
        return tuple(map(ord, text))

    lengths = credit_lengths(file, encode, 50, seed=0)
    (size,) = sizes
    assert {length % size for length in lengths} == {0}
    assert {length // size for length in lengths} <= set(range(25, 42))
    made_up = credit_lengths(None, encode, 50, seed=0)
    assert all(25 * 80 <= length <= 41 * 96 for length in made_up)
    jobs = credit_jobs(made_up, 60)
    assert [job.num_tokens - job.num_prefix for job in jobs] == made_up
    assert {job.prefix for job in jobs} == {"credit"}


def test_arrivals_come_alone_or_by_user_and_at_the_rate_asked_for() -> None:
    jobs = post_jobs(Posts(users=50, posts=8), seed=0)
    for pattern, moments in (("spread", 400), ("bursty", 50)):
        found = with_arrivals(jobs, pattern, 2.0, seed=5)
        assert {job.id for job in found} == {job.id for job in jobs}
        assert len({job.arrival_ns for job in found}) == moments
        assert 100 < max(job.arrival_ns for job in found) / S < 400, "200 s for 400 at 2 a second"
        slower = with_arrivals(jobs, pattern, 1.0, seed=5)
        for one, other in zip(found, slower, strict=True):
            assert other.arrival_ns == pytest.approx(2 * one.arrival_ns, abs=2)


def test_the_figure_shows_spread_posts_alone_beside_first_come_first_served() -> None:
    """Ours waits 1 s at each load, where first come, first served waits 1 and 2 s."""
    rows: list[Row] = [
        {"workload": w, "arrivals": a, "policy": policy, "load": load, "mean, s": mean_s}
        for w, a in (("posts", "spread"), ("posts", "bursty"), ("credit", "spread"))
        for load in (0.5, 1.0)
        for policy, mean_s in ((FCFS, 2 * load), ("families", 1.0))
    ]
    assert mean_latency_figure(rows).lines == {"families": [(0.5, 1.0), (1.0, 0.5)]}


def prompts() -> Iterator[list[Prompt]]:
    for number in count():
        yield [Prompt((Segment(Role.QUESTION, (number,)),))]


def test_every_contestant_gets_the_same_batch_of_a_round() -> None:
    choices = (Choice("yes", 5), Choice("no", 7))
    task = _Task("t", choices, prompts())
    assert task.batch(2)[0].token_ids == (2,)
    assert task.batch(0)[0].token_ids == (0,)
    assert task.batch(2) is task.batch(2)
    assert (task.allowed, task.is_one_token) == ((5, 7), True)


def test_probabilities_are_apart_by_the_worst_of_all() -> None:
    assert _apart([[0.5, 0.5], [0.9, 0.1]], [[0.4, 0.6], [0.6, 0.4]]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="shorter"):
        _apart([[1.0, 0.0]], [])


def test_messages_and_labels_are_read_as_published(tmp_path: Path) -> None:
    (tmp_path / "banking77").mkdir()
    (tmp_path / "clinc150").mkdir()
    rows = (
        'text,category\n"Where, please, is it?",card_arrival\nLost it,lost_card\nHm,card_arrival\n'
    )
    (tmp_path / "banking77" / "test.csv").write_text(rows)
    clinc = {"test": [["book a table", "dining"]], "train": [["no", "no"]]}
    (tmp_path / "clinc150" / "data_small.json").write_text(json.dumps(clinc))
    assert _banking(tmp_path) == ["Where, please, is it?", "Lost it", "Hm"]
    assert _intents(tmp_path) == ["card_arrival=card arrival.", "lost_card=lost card."]
    assert _clinc(tmp_path) == ["book a table"]
    assert _banking(None) == _clinc(tmp_path / "elsewhere")
    assert len(_intents(None)) == 7
