"""Best fit against the reference's numbers, and what is chosen beyond it: stored chunks, time, reserves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel
from kdn.errors import BadInput
from kdn.rag.metis import (
    ChunkState,
    ConfigurationSpace,
    DemandModel,
    EngineLoad,
    Method,
    Preference,
    RagConfiguration,
    best_fit,
    choose,
    preference_of,
)

STUFF, RERANK, REDUCE = Method.STUFF, Method.MAP_RERANK, Method.MAP_REDUCE
MILLISECOND_A_TOKEN = JctModel(pass_s=0.0, token_s=0.001, pair_s=0.0, cached_s=0.0)
MODEL = DemandModel(
    token_bytes=100,
    prelude_tokens=0,
    frame_tokens=50,
    max_answer_tokens=10,
    answer_tokens=10,
    jct=MILLISECOND_A_TOKEN,
    step_s=0.010,
    noted=False,
)
"""KV of 100 bytes a token; a question of 50 tokens; answers of 10, which take 0.1 s."""
CHUNKS = [ChunkState(1000)] * 12


def space(
    *methods: Method, chunks: tuple[int, int], summaries: tuple[int, int] = (40, 40)
) -> ConfigurationSpace:
    return ConfigurationSpace(frozenset(methods), *chunks, *summaries)


@pytest.mark.parametrize(
    ("configuration", "start", "total"),
    [
        (RagConfiguration(STUFF, 5), 5060, 5060),  # kC + q + o
        (RagConfiguration(RERANK, 5), 1060, 5300),  # k(C + q + o)
        (RagConfiguration(REDUCE, 5, 40), 1090, 5450),  # k(C + q + l), the mappers
        (RagConfiguration(REDUCE, 5, 200), 1250, 6250),
        (RagConfiguration(Method.EXTRACT, 1), 0, 0),
    ],
)
def test_memory_is_the_reference_formula_with_two_percent_more(
    configuration: RagConfiguration, start: int, total: int
) -> None:
    demand = MODEL.demand(configuration, CHUNKS)
    assert demand.start_bytes == 102 * start
    assert demand.total_bytes == 102 * total


def test_the_reducer_can_be_what_takes_most() -> None:
    """One chunk of 10 tokens: mapped 10 + 50 + 200, reduced 200 + 50 + 10."""
    demand = MODEL.demand(RagConfiguration(REDUCE, 1, 200), [ChunkState(10)])
    assert demand.total_bytes == demand.last_bytes == 102 * 260


@pytest.mark.parametrize(
    ("free_tokens", "chosen", "is_shrunk"),
    [
        (10_060, RagConfiguration(STUFF, 10), False),
        (6_500, RagConfiguration(STUFF, 6), False),  # the paper's own example: only up to 6 fit
        (5_060, RagConfiguration(STUFF, 5), False),
        (5_059, RagConfiguration(STUFF, 4), True),  # outside of the range, but it fits
        (1_060, RagConfiguration(STUFF, 1), True),
        (100, RagConfiguration(STUFF, 1), True),  # k = 0 is no answer: it waits
    ],
)
def test_the_largest_that_fits_is_taken(
    free_tokens: int, chosen: RagConfiguration, is_shrunk: bool
) -> None:
    found = best_fit(
        space(STUFF, chunks=(5, 10)),
        lambda one: MODEL.demand(one, CHUNKS),
        102 * free_tokens,
        is_joint=True,
    )
    assert found.configuration == chosen
    assert is_shrunk != found.reasons[0].startswith("it needs most of")


def test_what_needs_no_joint_reasoning_falls_back_to_mapping() -> None:
    found = best_fit(
        space(RERANK, chunks=(2, 6)), lambda one: MODEL.demand(one, CHUNKS), 5, is_joint=False
    )
    assert found.configuration == RagConfiguration(RERANK, 1)
    assert "waits for memory" in found.reasons[0]


def test_mappers_start_where_stuffing_does_not_fit() -> None:
    """1,100 tokens are free: a mapper fits, 4 chunks in one prompt do not."""
    found = best_fit(
        space(STUFF, REDUCE, chunks=(4, 6)),
        lambda one: MODEL.demand(one, CHUNKS),
        102 * 1_100,
        is_joint=True,
    )
    assert found.configuration == RagConfiguration(REDUCE, 6, 40)
    assert "of the 3 that fit" in found.reasons[0]


@given(
    free=st.integers(0, 2_000_000),
    joint=st.booleans(),
    least=st.integers(1, 4),
    more=st.integers(0, 8),
)
def test_best_fit_is_the_plain_search(free: int, joint: bool, least: int, more: int) -> None:
    methods = (STUFF, REDUCE) if joint else (RERANK,)
    here = space(*methods, chunks=(least, least + more), summaries=(30, 60))
    found = best_fit(here, lambda one: MODEL.demand(one, CHUNKS), free, is_joint=joint)
    fits = [one for one in here.configurations() if MODEL.demand(one, CHUNKS).start_bytes <= free]
    if fits:
        most = max(MODEL.demand(one, CHUNKS).total_bytes for one in fits)
        assert found.demand.total_bytes == most
        assert f"of the {len(fits)} that fit" in found.reasons[0]
    else:
        assert "fits into" in found.reasons[0]
        assert found.demand.total_bytes <= free or found.configuration.num_chunks == 1


# --- what is stored --------------------------------------------------------------------------


def test_a_stored_chunk_costs_no_time_and_no_second_copy() -> None:
    model = replace(MODEL, noted=True)
    one = RagConfiguration(RERANK, 1)
    cold, warm = model.demand(one, [ChunkState(1000)]), model.demand(one, [ChunkState(1000, 1000)])
    assert cold.seconds == pytest.approx(1.050 + 0.1)
    assert warm.seconds == pytest.approx(0.050 + 0.1)
    assert cold.start_bytes == 102 * (1060 + 1000)  # read, and noted down to be stored
    assert warm.start_bytes == 102 * 1060


def test_a_distant_tier_costs_its_load() -> None:
    far = MODEL.demand(RagConfiguration(RERANK, 1), [ChunkState(1000, 1000, load_s=0.7)])
    assert far.seconds == pytest.approx(0.050 + 0.1 + 0.7)


@pytest.mark.parametrize(
    ("ratio", "new"),
    [
        (None, 2050),  # only the first chunk stands where it stood
        (0.15, 400),  # 15 % of the other two, and the question twice: before that it is probed
        (0.0, 100),
    ],
)
def test_a_blended_chunk_costs_its_ratio(ratio: float | None, new: int) -> None:
    model = replace(MODEL, blend_ratio=ratio)
    demand = model.demand(RagConfiguration(STUFF, 3), [ChunkState(1000, 1000)] * 3)
    assert demand.seconds == pytest.approx(new / 1000 + 0.1)


def test_what_follows_a_blended_chunk_is_not_noted() -> None:
    """Three of 1,000 tokens, the second stored: the first is noted down, the third is not."""
    model = replace(MODEL, blend_ratio=0.5, noted=True)
    chunks = [ChunkState(1000), ChunkState(1000, 1000), ChunkState(1000)]
    tokens = 3000 + 50 + 10 + 1000
    assert model.demand(RagConfiguration(STUFF, 3), chunks).start_bytes == 102 * tokens


def test_mapping_reuses_every_stored_chunk_where_stuffing_reuses_one() -> None:
    stored = [ChunkState(1000, 1000)] * 4
    mapped = MODEL.demand(RagConfiguration(RERANK, 4), stored).seconds
    stuffed = MODEL.demand(RagConfiguration(STUFF, 4), stored).seconds
    assert mapped < stuffed / 5


# --- beyond the paper ------------------------------------------------------------------------


def chosen(
    here: ConfigurationSpace,
    load: EngineLoad,
    chunks: list[ChunkState] = CHUNKS,
    preference: Preference = Preference.BALANCED,
    deadline_s: float | None = None,
    may_quote: bool = True,
    max_context: int = 100_000,
) -> RagConfiguration:
    found = choose(
        here,
        chunks,
        MODEL,
        load,
        is_joint=STUFF in here.methods,
        max_context=max_context,
        preference=preference,
        deadline_s=deadline_s,
        may_quote=may_quote,
    )
    assert found.reasons
    return found.configuration


PLENTY = EngineLoad(10**9)


def test_preferences() -> None:
    """Two chunks take 2.15 s; balanced allows twice that, which four chunks keep to (4.15 s)."""
    here = space(STUFF, chunks=(2, 6))
    assert chosen(here, PLENTY, preference=Preference.BEST).num_chunks == 6
    assert chosen(here, PLENTY, preference=Preference.FAST).num_chunks == 2
    assert chosen(here, PLENTY).num_chunks == 4


@pytest.mark.parametrize(
    ("num_stored", "count"),
    [
        (
            0,
            4,
        ),  # k alone take 1.05 k + 0.1 s and 0.01 s a further row: 2.21 s, and 4.33 s of 4.42 s
        (
            3,
            4,
        ),  # five take 5.39 s; of the 3 s that three stored ones save a quarter is let off: 4.64 s
        (4, 5),  # 4.39 s
        (6, 5),  # six take 6.45 s and are billed 4.95 s
    ],
)
def test_a_quarter_of_what_is_saved_buys_more_chunks(num_stored: int, count: int) -> None:
    chunks = [ChunkState(1000, 1000 if number < num_stored else 0) for number in range(6)]
    assert chosen(space(RERANK, chunks=(2, 6)), PLENTY, chunks=chunks).num_chunks == count


def test_of_as_many_chunks_the_method_follows_the_store() -> None:
    """Cold, four mappers and a reducer take longer than one prompt; stored, they compute no chunk."""
    here = space(STUFF, REDUCE, chunks=(4, 4))
    assert chosen(here, PLENTY).method is STUFF
    assert chosen(here, PLENTY, chunks=[ChunkState(1000, 1000)] * 4).method is REDUCE


def test_stored_chunks_beyond_the_space_are_read_in_place_of_others() -> None:
    """Two of six are read.  The best is sure; of scores 5, 4, 4, 4, 4 the last two are stored."""
    here = space(RERANK, chunks=(1, 3))
    scores = [ChunkState(1000, score=score) for score in (9.0, 5.0, 4.0, 4.0)]
    stored = [ChunkState(1000, 1000, score=4.0)] * 2
    found = chosen(here, PLENTY, chunks=[*scores, *stored])
    assert found == RagConfiguration(RERANK, 2, places=(0, 4))
    best = chosen(here, PLENTY, chunks=[*scores, *stored], preference=Preference.BEST)
    assert best == RagConfiguration(RERANK, 3), (
        "what was asked for at its best is read by score alone"
    )


def test_a_deadline_goes_before_the_preference() -> None:
    here = space(STUFF, chunks=(2, 6))
    best = Preference.BEST
    assert chosen(here, PLENTY, preference=best, deadline_s=4.2).num_chunks == 4
    ahead = EngineLoad(10**9, ahead_s=2.0)
    assert chosen(here, ahead, preference=best, deadline_s=4.2).num_chunks == 2


def test_a_deadline_that_none_keeps_quotes_or_takes_the_quickest() -> None:
    here = space(STUFF, chunks=(2, 6))
    assert chosen(here, PLENTY, deadline_s=0.5).method is Method.EXTRACT
    assert chosen(here, PLENTY, deadline_s=0.5, may_quote=False).num_chunks == 2


def test_a_reserve_is_held_back_for_those_who_come() -> None:
    """10,060 tokens fit ten chunks; with two arrivals expected meanwhile, of 2,000 tokens each, six."""
    here = space(STUFF, chunks=(5, 10))
    free = 102 * 10_060
    best = Preference.BEST
    assert chosen(here, EngineLoad(free), preference=best).num_chunks == 10
    busy = EngineLoad(free, arrivals_per_s=0.3, mean_bytes=102 * 2_000)
    # Seven chunks run 7.15 s: 2.1 arrivals, 4,290 tokens held back; six 6.15 s: 1.8, 3,690.
    assert chosen(here, busy, preference=best).num_chunks == 6


def test_at_most_half_of_the_free_memory_is_held_back() -> None:
    here = space(STUFF, chunks=(2, 4))
    crowd = EngineLoad(102 * 5_000, arrivals_per_s=50, mean_bytes=10**9)
    assert chosen(here, crowd, preference=Preference.BEST).num_chunks == 2


@pytest.mark.parametrize(
    ("every_s", "count"),
    [
        (
            8.0,
            6,
        ),  # 6.4 s are a query's share: six chunks of 1 s, the question and the answer take 6.06 s
        (6.0, 4),  # 4.8 s
        (4.0, 3),  # 3.2 s: fewer than the question wants, as where memory does not suffice
        (2.0, 1),  # 1.6 s
        (0.5, 1),  # nothing is small enough
    ],
)
def test_a_query_takes_no_more_than_its_share_of_the_time(every_s: float, count: int) -> None:
    here = space(STUFF, REDUCE, chunks=(4, 6))
    load = EngineLoad(10**9, arrivals_per_s=1 / every_s)
    assert chosen(here, load) == RagConfiguration(STUFF, count)


def test_a_busy_engine_shares_its_decode_steps() -> None:
    """Answers of 100 tokens take 1 s alone, and 0.1 s of steps that others take too.  Of 3.2 s three chunks
    take 3.15, though their answer comes after 4.05 s."""
    model = replace(MODEL, max_answer_tokens=100, answer_tokens=100)
    demand = model.demand(RagConfiguration(STUFF, 3), CHUNKS)
    assert [demand.seconds, demand.busy_s] == pytest.approx([4.05, 3.15])
    load = EngineLoad(10**9, arrivals_per_s=0.25)
    found = choose(
        space(STUFF, chunks=(2, 6)), CHUNKS, model, load, is_joint=True, max_context=100_000
    )
    assert found.configuration.num_chunks == 3
    few = choose(
        space(STUFF, chunks=(4, 6)), CHUNKS, model, load, is_joint=True, max_context=100_000
    )
    assert "only fewer chunks than the question wants" in " ".join(few.reasons)


def test_no_more_is_read_than_two_chunks_in_one_prompt_where_these_are_all_there_is_time_for() -> (
    None
):
    """Whatever the profile says, a crowd is answered at the price of the obvious static choice."""
    load = EngineLoad(10**9, arrivals_per_s=0.8 / 2.2)  # two chunks in one prompt take 2.06 s
    for here in (
        space(STUFF, chunks=(2, 6)),
        space(STUFF, REDUCE, chunks=(8, 12)),
        space(RERANK, chunks=(3, 9)),
    ):
        assert chosen(here, load) == RagConfiguration(STUFF, 2)


def test_prompts_beyond_the_context_are_left_out() -> None:
    here = space(STUFF, chunks=(2, 6))
    assert chosen(here, PLENTY, preference=Preference.BEST, max_context=3_100).num_chunks == 3
    assert chosen(here, PLENTY, max_context=1_500).num_chunks == 1


def test_what_the_context_cannot_hold_is_no_measure_of_patience() -> None:
    """Two chunks in one prompt of 2,060 tokens take 2.15 s, mapped 2.44: twice that is enough for four
    (4.64 s), twice the former for three (3.54 s)."""
    found = chosen(space(STUFF, REDUCE, chunks=(2, 6)), PLENTY, max_context=1_200)
    assert (found.method, found.num_chunks) == (REDUCE, 4)


def test_a_busy_engine_too_leaves_out_prompts_beyond_the_context() -> None:
    """There is time for three chunks, but with question and answer they have 3,060 tokens; two have 2,060."""
    load = EngineLoad(10**9, arrivals_per_s=1 / 4)
    here = space(STUFF, REDUCE, chunks=(4, 6))
    assert chosen(here, load, max_context=2_100) == RagConfiguration(STUFF, 2)


def test_an_unknown_preference_names_those_there_are() -> None:
    with pytest.raises(BadInput, match="fast, balanced, best"):
        preference_of("cheap")
