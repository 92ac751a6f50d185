"""Equal real runs and the simulator beside them: the figures by hand, and a small model that runs twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn import api
from kdn.bench import BenchOptions
from kdn.bench.rag.arms import static_arms
from kdn.bench.rag.check import CheckedArm, RealCheck, simulator_summary
from kdn.bench.rag.questions import load_sets
from kdn.bench.rag.real import RealQuery, RealRuns
from kdn.bench.rag.workload import find_all
from kdn.config import Config, EngineConfig, StoreConfig
from kdn.core import JctModel
from kdn.rag.metis import Method, RagConfiguration
from kdn.trace import Recorder


def run_of(*delays_s: float) -> list[RealQuery]:
    one = RagConfiguration(Method.STUFF, 2)
    return [RealQuery(one, delay_s, "text", ()) for delay_s in delays_s]


def test_errors_and_their_floor_by_hand() -> None:
    """Means of 1.8 and 2.2 s, simulated 1.6: a fifth too quick, and the runs lie a fifth apart.  The other
    arm's runs are equal, and its simulation is a tenth too slow."""
    first = CheckedArm("a", (run_of(1.6, 2.0), run_of(2.2, 2.2)), 1.6)
    other = CheckedArm("b", (run_of(1.0), run_of(1.0)), 1.1)
    assert first.real_s == pytest.approx(2.0)
    assert [first.error, first.spread] == pytest.approx([-0.2, 0.2])
    assert simulator_summary([first, other]) == {
        "simulator_error": pytest.approx(0.15),
        "simulator_bias": pytest.approx(-0.05),
        "simulator_error_floor": pytest.approx(0.05),
    }


def test_an_arm_runs_twice_with_equal_calls(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """`stuff` over two, of which the second run computes as many tokens as the first, behind another salt."""
    paragraphs = [
        {
            "context": f"The {name} hangs behind the clock in the hall. " * 20,
            "qas": [
                {
                    "question": f"Where is the {name}?",
                    "answers": [{"text": "clock", "answer_start": 0}],
                }
            ],
        }
        for name in ("key", "coat", "bell")
    ]
    (tmp_path / "squad").mkdir()
    row = {"title": "Halls", "paragraphs": paragraphs}
    (tmp_path / "squad" / "public.jsonl").write_text(json.dumps(row) + "\n")
    config = Config(
        home=tmp_path / "home",
        engine=EngineConfig(threads=1, fit_idle_s=0),
        store=StoreConfig(folder=tmp_path / "blocks"),
    )
    options = BenchOptions(home=tmp_path / "home", threads=1)
    model, trace = str(tiny_model("llama", max_position_embeddings=4096)), Recorder()
    with api.open(model, config=config, trace=trace) as k:
        asked = find_all(k, load_sets(tmp_path, 2), tmp_path / "libraries", options)
        real = RealRuns(k, asked, JctModel(0.001, 1e-5, 0.0, 0.0), 4, 0)
        real.fit(1)
        before = trace.count("engine.admit")
        real.prefill("stored", 1.0, 2)
        parts = [part.key for one in asked for part in one.parts]
        assert len(parts) == 2 * len(set(parts)), "both questions find the same"
        assert trace.count("engine.admit") == before + len(set(parts)), "each is prefilled once"
        check = RealCheck(
            real, asked, static_arms(), 0.5, 1, lambda: real.speed(10_000, 0.06), options.say
        )
        known = {one.question.text: one.question.profile for one in asked}
        (found,) = check.run(["static stuff 2"], known, [0.0, 0.01])
    first, again = (
        [(query.configuration, [usage.prompt_tokens for usage in query.usages]) for query in made]
        for made in found.made
    )
    assert first == again
    assert {one.num_chunks for one, _ in first} == {2}
    told = found.row(asked)
    assert told["simulated s"] == found.played_s
    assert found.played_s > 0
    assert told["mean s"] == found.real_s
