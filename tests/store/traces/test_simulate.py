"""Traces are read, recorded and replayed; the optimum is never beaten."""

from __future__ import annotations

import gzip
import os
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.errors import BadInput, StoreError
from kdn.store.policies import POLICIES
from kdn.store.traces.recording import LookupRecorder, TraceRequest, read_trace
from kdn.store.traces.replay import replay
from kdn.store.traces.simulate import OPTIMUM, Belady, simulate
from tests.store.traces.written import write_trace

TRACE = Path(__file__).parents[4] / "shared/data/mooncake_traces/conversation_trace.jsonl.gz"


def ask(*chains: str) -> list[TraceRequest]:
    """One request a second; each letter is a block of one token."""
    return [
        TraceRequest(timestamp=1000.0 * n, input_length=len(c), hash_ids=tuple(c), block_tokens=1)
        for n, c in enumerate(chains)
    ]


def rate(policy: str, requests: list[TraceRequest], room: int) -> float:
    (run,) = simulate(requests, [policy], [room], 1)
    return run.hit_rate


def test_only_leading_blocks_hit() -> None:
    served = list(replay(ask("abc", "abd", "xbc"), 1, 10, Belady(ask("abc", "abd", "xbc"))))
    assert [one.hit_blocks for one in served] == [0, 2, 0]
    assert [one.hit_tokens for one in served] == [0, 2, 0]
    assert served[1].read_bytes == 2
    assert [one.written_blocks for one in served] == [3, 1, 1]  # b and c are there behind x


def test_the_optimum_keeps_what_is_wanted_soonest() -> None:
    requests = ask(*"abcabc")
    assert rate("lru", requests, room=2) == 0
    assert rate(OPTIMUM, requests, room=2) == 2 / 6  # a, b stay; c is not let in


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), st.integers(1, 4))
def test_nobody_beats_the_optimum(asked: list[str], room: int) -> None:
    requests = ask(*asked)
    best = rate(OPTIMUM, requests, room)
    assert all(rate(name, requests, room) <= best for name in POLICIES)


def test_with_room_for_all_every_policy_hits_the_same() -> None:
    requests = ask(*("".join(chain) for chain in permutations("abcd", 3)))
    rates = {rate(name, requests, 100) for name in (*POLICIES, OPTIMUM)}
    assert len(rates) == 1


def test_a_trace_is_written_and_read_back(tmp_path: Path) -> None:
    requests = ask("ab", "abc")
    write_trace(tmp_path / "t.jsonl.gz", requests)
    assert read_trace(tmp_path / "t.jsonl.gz") == requests


def test_mooncakes_own_lines_are_read(tmp_path: Path) -> None:
    line = '{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}\n'
    (tmp_path / "t.jsonl").write_text(line)
    (request,) = read_trace(tmp_path / "t.jsonl")
    uses = request.uses(token_bytes=2)
    assert [(one.key, one.start, one.num_tokens, one.size_bytes) for one in uses] == [
        ("0", 0, 512, 1024),
        ("7", 512, 88, 1024),
    ]
    assert request.at_s == 3.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no requests"),
        ("{}", "line 1: no request of a trace"),
        ('{"timestamp": -1, "input_length": 1}', "cannot be negative"),
        ('{"timestamp": 1, "input_length": 512, "hash_ids": [1, 2]}', "at most 1 blocks"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(BadInput, match=why):
        read_trace(tmp_path / "t.jsonl")


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"{}" * 100)[:20])
    with pytest.raises(BadInput, match="cannot be read"):
        read_trace(tmp_path / "t.jsonl.gz")


def test_a_recorded_chat_replays_with_the_hits_it_had(tmp_path: Path) -> None:
    clock = ManualClock()
    recorder = LookupRecorder(tmp_path / "mine.jsonl", clock, block_tokens=4)
    recorder.note(range(8), "alice")
    clock.advance(2.0)
    recorder.note(range(11), "alice")
    recorder.note(range(8), "bob")
    recorder.close()
    requests = read_trace(tmp_path / "mine.jsonl")
    assert [one.at_s for one in requests] == [0.0, 2.0, 2.0]
    assert "range" not in (tmp_path / "mine.jsonl").read_text()
    served = list(replay(requests, 1, 100, Belady(requests)))
    assert [one.hit_tokens for one in served] == [0, 8, 0]  # bob never meets alice


def test_lookups_are_written_to_a_file_and_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").write_text("no folder")
    for name, kind, why in (
        ("pipe", BadInput, "is a device, a pipe"),
        (".", BadInput, "is a folder"),
        ("a.txt/lookups.jsonl", StoreError, "recording lookups in"),
    ):
        with pytest.raises(kind, match=why):
            LookupRecorder(tmp_path / name, ManualClock())


@pytest.mark.skipif(not TRACE.exists(), reason="needs ../shared/data/mooncake_traces")
def test_mooncake_first_minutes_value_is_above_lru() -> None:
    requests = read_trace(TRACE)[:4000]
    runs = {
        one.policy: one
        for one in simulate(requests, ["lru", "value", OPTIMUM], [4000 * 512], token_bytes=1)
    }
    assert runs["lru"].hit_rate < runs["value"].hit_rate < runs[OPTIMUM].hit_rate
