"""The RAG benchmark's instruments: the simulator by hand, the arms by what they see, questions by form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.bench.rag.arms import ChoiceInput, arms, blended_arms, static_arms
from kdn.bench.rag.questions import BenchQuestion, load_sets
from kdn.bench.rag.real import slope
from kdn.bench.rag.simulate import EngineSpeed, SimulatedCall, SimulatedEngine, SimulatedQuery
from kdn.bench.rag.simulated import ArmOutcome, rows_by_set
from kdn.bench.rag.workload import AskedQuestion, recall
from kdn.core import JctModel
from kdn.errors import BadInput
from kdn.rag import Part
from kdn.rag.metis import (
    ChunkState,
    DemandModel,
    EngineLoad,
    Method,
    QuestionProfile,
    RagConfiguration,
)

JCT = JctModel(pass_s=0.1, token_s=0.001, pair_s=0.0, cached_s=0.0)
SPEED = EngineSpeed(JCT, step_s=0.01, kv_tokens=1000, pass_tokens=500, row_s=0.002)


def call(new: int, answer: int = 1, kv: int | None = None) -> SimulatedCall:
    return SimulatedCall(new, 0, answer, new if kv is None else kv)


def query(at: float, *stages: list[SimulatedCall]) -> SimulatedQuery:
    return SimulatedQuery(at, lambda _: list(stages))


def ended(speed: EngineSpeed, *queries: SimulatedQuery) -> list[object]:
    engine = SimulatedEngine(speed)
    engine.play(queries)
    engine.check()
    return [pytest.approx(one.ended_s) for one in queries]


def test_a_call_alone_takes_its_passes_and_its_steps() -> None:
    """400 rows: 0.1 + 0.4 s; then ten more tokens of 0.01 s."""
    assert ended(SPEED, query(0.0, [call(400, 11)])) == [0.6]


def test_a_long_prompt_takes_several_passes() -> None:
    """800 rows in passes of 500: 2 x 0.1 + 0.8 s."""
    assert ended(SPEED, query(2.0, [call(800)])) == [3.0]


def test_calls_share_a_pass_and_steps() -> None:
    """Two of 100 rows: 0.1 + 0.2 s; a step of two costs the other's row, 0.002 s."""
    assert ended(SPEED, query(0.0, [call(100, 2), call(100, 2)])) == [0.3 + 0.012]


def test_a_step_takes_longer_over_more_columns_than_it_was_measured_by() -> None:
    """10 ms over 100 columns, 0.01 ms a column: a step over 400 takes 13 ms, one over 50 takes 9.5.  Beside
    the 400 a further row with 200 columns adds 2 + 2 ms."""
    speed = replace(SPEED, column_s=1e-5, step_columns=100)
    assert [speed.steps_s(one) for one in ([400], [50], [400, 200])] == pytest.approx(
        [0.013, 0.0095, 0.017]
    )
    assert ended(speed, query(0.0, [call(400, 11)])) == [0.5 + 0.13]


def test_those_that_decode_ride_along_in_short_passes() -> None:
    """The first has its token at 0.2 s and needs three more.  Beside it 300 rows are computed in parts of
    128, 128 and 44: passes of 0.1 s, 1 ms a row and 2 ms for the rider end at 0.43, 0.66 and 0.806 s."""
    first, second = query(0.0, [call(100, 4)]), query(0.15, [call(300)])
    assert ended(SPEED, first, second) == [0.806, 0.806]


def test_a_short_pass_takes_the_next_prompt_along() -> None:
    """Beside 28 rows 100 of 128 are left in the pass, more than half a block, so that the next prompt's 128
    go along: 0.2 + 0.1 + 0.156 + 0.002 s."""
    first, second, third = (
        query(0.0, [call(100, 2)]),
        query(0.15, [call(28)]),
        query(0.15, [call(128)]),
    )
    assert ended(SPEED, first, second, third) == [0.458] * 3


def test_a_blended_prefill_gives_way_to_those_that_decode_when_they_have_waited() -> None:
    """The first has its token at 0.2 s and needs three steps.  A probe of 0.15 s and a pass of 0.4 s, in four
    layers of 0.1375 s, begin beside it: a step is due after every layer, and the steps end at 0.3475, 0.495
    and 0.6425."""
    speed = replace(SPEED, stall_s=0.06, num_layers=4)
    blended = replace(call(300), num_probe=50)
    first, second = query(0.0, [call(100, 4)]), query(0.15, [blended])
    assert ended(speed, first, second) == [0.6425, 0.78]


def test_a_prompt_that_loads_what_is_stored_takes_no_one_along() -> None:
    """300 rows behind 100 that are loaded, in four layers: 1.5 times 0.1 + 0.3 s, so 0.15 s a layer.  The
    first has its token at 0.2 s and needs three steps of 10 ms, due after every layer: 0.36, 0.52, 0.68."""
    speed = replace(SPEED, stall_s=0.06, num_layers=4, loading=1.5)
    behind = SimulatedCall(300, 100, 1, kv_tokens=400)
    first, second = query(0.0, [call(100, 4)]), query(0.15, [behind])
    assert ended(speed, first, second) == [0.68, 0.83]


def test_what_was_loaded_takes_those_that_decode_along() -> None:
    """600 rows behind 200: the first pass, of 440 rows up to position 640, loads; the other does not."""
    behind = SimulatedCall(600, 200, 1, kv_tokens=800)
    assert ended(replace(SPEED, loading=2.0), query(0.0, [behind])) == [2 * 0.54 + 0.26]


def test_a_small_stored_beginning_is_in_its_place_before_the_pass() -> None:
    """600 rows behind 100, of which six times as many are to be computed: plain passes of 412 and 188."""
    behind = SimulatedCall(600, 100, 1, kv_tokens=700)
    assert ended(replace(SPEED, loading=2.0), query(0.0, [behind])) == [0.512 + 0.288]


def test_a_blended_call_is_probed_before_its_prefill() -> None:
    """A pass of 50 rows takes 0.1 + 0.05 s; then 400 rows take 0.1 + 0.4 s."""
    assert ended(SPEED, query(0.0, [replace(call(400), num_probe=50)])) == [0.65]


def test_what_does_not_fit_waits() -> None:
    """The second finds 400 of 1,000 tokens free and needs 600: it begins when the first is over."""
    found = ended(SPEED, query(0.0, [call(200, kv=600)]), query(0.1, [call(200, kv=600)]))
    assert found == [0.3, 0.6]


def test_a_second_step_begins_when_the_first_is_over() -> None:
    assert ended(SPEED, query(0.0, [call(100), call(100)], [call(200)])) == [0.6]


def test_a_query_that_asks_nothing_ends_when_it_comes() -> None:
    assert ended(SPEED, query(1.5, [])) == [1.5]


def test_the_engine_tells_what_nobody_claims() -> None:
    """Of 1,000: 300 run; the running query's next step will take 250."""
    seen: list[int] = []

    def look(engine: SimulatedEngine) -> list[list[SimulatedCall]]:
        seen.append(engine.unclaimed_tokens)
        return [[call(10)]]

    long = query(0.0, [call(300, 50)], [call(250)])
    SimulatedEngine(SPEED).play([long, SimulatedQuery(0.1, look)])
    assert seen == [450]


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 900), st.integers(1, 20)), min_size=1, max_size=8
    )
)
def test_nothing_is_lost_and_nothing_is_quicker_than_alone(
    drawn: list[tuple[float, int, int]],
) -> None:
    queries = [query(at, [call(new, answer)]) for at, new, answer in drawn]
    engine = SimulatedEngine(SPEED)
    engine.play(queries)
    engine.check()
    for one, (_, new, answer) in zip(queries, drawn, strict=True):
        passes = -(-new // 500)
        assert one.delay_s >= 0.001 * new + 0.1 * passes + 0.01 * (answer - 1) - 1e-9


def test_a_profile_by_the_engines_own_model_is_a_call_before_the_choice() -> None:
    """0.1 + 0.1 s of prefill and a step of 0.01 s; the choice is made then, and its call takes 0.3 s."""
    engine, seen = SimulatedEngine(SPEED), list[float]()

    def decide(engine: SimulatedEngine) -> list[list[SimulatedCall]]:
        seen.append(engine.now_s)
        return [[call(200)]]

    asked = SimulatedQuery(0.0, decide, opening=[call(100, 2)])
    engine.play([asked])
    engine.check()
    assert seen == [pytest.approx(0.21)]
    assert asked.ended_s == pytest.approx(0.51)


# --- arms ------------------------------------------------------------------------------------

MODEL = DemandModel(
    token_bytes=1, prelude_tokens=0, frame_tokens=50, max_answer_tokens=10, answer_tokens=10,
    jct=JCT, step_s=0.01,
)  # fmt: skip
GIVEN = ChoiceInput(
    QuestionProfile(True, False, 2, (30, 60)),
    [ChunkState(250)] * 12,
    MODEL,
    EngineLoad(10**9),
    num_running=0,
    max_context=8192,
)


def test_arms_see_what_their_authors_saw() -> None:
    found = {name: arm(GIVEN) for name, arm in arms().items()}
    assert found["METIS as published"].num_chunks == 6, "the largest that fits"
    assert found["adaptive by complexity"].num_chunks == 6
    assert found["median of the pruned space"].num_chunks == 4
    assert found["chunks by queue depth"].num_chunks == 6
    assert found["ours, best"].num_chunks == found["ours, most chunks"].num_chunks == 6
    assert {one.method for one in found.values()} == {Method.STUFF}
    tight = replace(GIVEN, load=EngineLoad(900), num_running=4)
    again = {name: arm(tight) for name, arm in arms().items()}
    assert again["METIS as published"].num_chunks == 3
    assert again["adaptive by complexity"].num_chunks == 6, "it looks at no memory"
    assert again["chunks by queue depth"].num_chunks == 2


def test_only_ours_sees_what_is_stored() -> None:
    profile = QuestionProfile(False, False, 1, (30, 60))
    stored = replace(GIVEN, profile=profile, chunks=[ChunkState(250, 250)] * 12)
    found = arms()
    assert found["ours, balanced"](stored).num_chunks == 3
    assert found["ours, balanced, without the store"](stored).num_chunks == 2


def test_the_chunk_that_is_stored_leads_where_the_store_is_seen() -> None:
    """The third is stored: of a prompt of as many chunks it saves 250 rows in front."""
    chunks = [ChunkState(250, 250 if number == 2 else 0) for number in range(12)]
    given = replace(GIVEN, chunks=chunks)
    found = arms()["ours, most chunks"](given)
    blind = arms()["ours, most chunks, without the store"](given)
    assert (found.places, blind.places) == ((2, 0, 1, 3, 4, 5), ())
    assert found.num_chunks == blind.num_chunks
    led, plain = (MODEL.demand(one, chunks).seconds for one in (found, blind))
    assert plain - led == pytest.approx(0.250)
    assert found.ordered("abcdefghijkl")[:3] == ["c", "a", "b"]


def test_the_static_grid_keeps_to_what_was_found() -> None:
    few = replace(GIVEN, chunks=[ChunkState(250)] * 2)
    assert {arm(few).num_chunks for arm in static_arms().values()} == {1, 2}
    assert len(static_arms()) == 15


def test_the_store_saves_more_where_documents_are_blended() -> None:
    """Of twelve chunks of equal score the last six are stored.  The two best are sure; the four others are
    stored ones: 15 % of the three that do not lead are computed, where a plain engine computes the best."""
    chunks = [ChunkState(200, 200 if number > 5 else 0, score=1.0) for number in range(12)]
    given = replace(GIVEN, chunks=chunks, model=replace(MODEL, blend_ratio=0.15))
    seen, blind = (
        blended_arms()[f"ours, most chunks, blended{one}"](given)
        for one in ("", ", without the store")
    )
    assert seen.places == (6, 0, 1, 7, 8, 9)
    assert blind.places == ()
    # 0.1 + 0.4 + 3 x 0.03 + 0.05 s and a probe pass of 0.1 + 0.05 s; six computed: 0.1 + 1.2 + 0.05 s.
    saved = given.model.demand(blind, chunks).seconds - given.model.demand(seen, chunks).seconds
    assert saved == pytest.approx(1.35 - 0.79)


def asked(joint: bool, gold: set[int], num_gold: int) -> AskedQuestion:
    profile = QuestionProfile(joint, False, 2, (30, 60))
    return AskedQuestion(BenchQuestion("?", profile, (), ("x",)), (), frozenset(gold), num_gold)


@pytest.mark.parametrize(
    ("joint", "method", "chunks", "expected"),
    [
        (True, Method.STUFF, 1, 1 / 3),
        (True, Method.STUFF, 4, 2 / 3),  # the third was not found
        (True, Method.MAP_RERANK, 4, 1 / 3),  # an answer from one part
        (False, Method.MAP_RERANK, 4, 1.0),
        (False, Method.STUFF, 1, 1.0),
    ],
)
def test_recall_is_of_what_the_answer_can_rest_on(
    joint: bool, method: Method, chunks: int, expected: float
) -> None:
    """Gold at places 0 and 3 of those found, three in the library."""
    found = recall(asked(joint, {0, 3}, 3), RagConfiguration(method, chunks))
    assert found == pytest.approx(expected)
    assert recall(asked(joint, set(), 0), RagConfiguration(method, chunks)) is None


def test_recall_is_of_the_chunks_that_are_read() -> None:
    """Of gold at places 0 and 3, three in the library, the second is read in place of chunk 1."""
    chosen = RagConfiguration(Method.STUFF, 2, places=(3, 0))
    assert recall(asked(joint=True, gold={0, 3}, num_gold=3), chosen) == pytest.approx(2 / 3)


def test_an_arm_is_told_by_set() -> None:
    outcome = ArmOutcome((1.0, 4.0, 2.0), (1.0, None, 0.5), 0.75, 1.0, 2.0)
    filings, squad = rows_by_set("ours", 0.25, outcome, ["squad", "sec10q", "squad"])
    assert (squad["set"], squad["queries"], squad["mean s"], squad["recall"]) == (
        "squad",
        2,
        1.5,
        0.75,
    )
    assert (filings["set"], filings["mean s"], filings["recall"]) == ("sec10q", 4.0, None)


def test_a_question_that_is_asked_again_finds_another_copy() -> None:
    part = Part("key", "source", "title", "text", 1, ())
    once = replace(asked(joint=True, gold={0}, num_gold=1), parts=(part,))
    keys = [one.key for number in range(3) for one in once.copied(number).parts]
    assert keys == ["key/0", "key/1", "key/2"]


# --- questions -------------------------------------------------------------------------------


def write(folder: Path, name: str, row: dict[str, Any]) -> None:
    (folder / name).mkdir()
    (folder / name / "public.jsonl").write_text(json.dumps(row) + "\n")


def test_questions_carry_their_profile_and_their_gold(tmp_path: Path) -> None:
    write(
        tmp_path,
        "squad",
        {
            "title": "Clocks",
            "paragraphs": [
                {
                    "context": "The brass key hangs behind the clock in the hall.",
                    "qas": [
                        {
                            "question": "Where is the key?",
                            "answers": [{"text": "behind the clock", "answer_start": 20}],
                        }
                    ],
                }
            ],
        },
    )
    write(
        tmp_path,
        "hotpotqa",
        {
            "question": "Whose father built it?",
            "answer": "Ann",
            "supporting_facts": {"title": ["Mill", "Ann"], "sent_id": [0, 0]},
            "context": {
                "title": ["Mill", "Ann", "Other"],
                "sentences": [["The mill is Ann's."], ["Ann is Bob's child."], ["No."]],
            },
        },
    )
    squad, hotpotqa = load_sets(tmp_path, most=5)
    (single,), (joined,) = squad.questions, hotpotqa.questions
    assert (single.profile.is_joint, single.profile.num_pieces) == (False, 1)
    assert (joined.profile.is_joint, joined.profile.num_pieces) == (True, 2)
    assert len(hotpotqa.documents) == 3
    assert joined.evidence == ("The mill is Ann's.", "Ann is Bob's child.")


def test_a_folder_without_sets_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--data"):
        load_sets(None, 1)
    with pytest.raises(BadInput, match="holds none of"):
        load_sets(tmp_path, 1)


def test_a_disturbed_step_does_not_bend_the_slope() -> None:
    """Steps of 10 ms and 10 us a column; one at 900 columns took 0.5 s.  Pairs half a range apart count."""
    steps = [(columns, 0.01 + 1e-5 * columns) for columns in (100, 200, 800, 900)]
    assert slope(steps) == pytest.approx(1e-5)
    assert slope([*steps, (900, 0.5)]) == pytest.approx(1e-5)
    assert slope([(100, 0.010), (900, 0.009)]) == 0.0, "it cannot be less"
    assert slope([(100, 0.01), (100, 0.02)]) is None
    assert slope([]) is None
