"""What is loaded and saved of a prompt, with blocks of 128 for the engine and of 256 for the store."""

from __future__ import annotations

import pytest

from kdn.core import EXACT, Fingerprint
from kdn.errors import StoreError
from kdn.scale.counts import TransferCounts
from kdn.scale.identity import HANDED
from kdn.scale.planner import PromptFacts, ScheduledRequest, StepPlan, TransferPlanner
from kdn.store import MemoryTier, Store
from kdn.trace import NoTrace
from tests.scale.engine import PRINT, SIZE, Rig, holds, prints

PROMPT = tuple(range(1, 701))


def planned(planner: TransferPlanner, name: str, computed: int, scheduled: int) -> StepPlan:
    table = range(10, 20)
    return planner.step([ScheduledRequest(name, computed, scheduled, lambda: table)])


def new_planner() -> TransferPlanner:
    planner = TransferPlanner(
        Store([MemoryTier(1 << 20, NoTrace())]), SIZE, prints, TransferCounts()
    )
    planner.follow(PromptFacts("a", len(PROMPT)), PROMPT)
    return planner


def test_a_prompt_that_is_computed_at_once_is_saved_up_to_its_last_whole_block() -> None:
    """700 tokens fill five blocks of 128: 640 tokens; the other 60 stay in the engine's tail."""
    (save,) = planned(new_planner(), "a", 0, 700).saves
    assert (save.start, save.token_ids) == (0, PROMPT[:640])
    assert save.table == (10, 11, 12, 13, 14)


def test_a_prompt_in_parts_is_saved_in_whole_blocks_of_the_store_until_its_end() -> None:
    planner = new_planner()
    found = [planned(planner, "a", *step).saves for step in ((0, 200), (200, 200), (400, 300))]
    assert found[0] == ()
    assert [(save.start, len(save.token_ids)) for save in found[1]] == [(0, 256)]
    assert [(save.start, len(save.token_ids)) for save in found[2]] == [(256, 640)]


def test_the_answer_is_not_saved_and_costs_no_look_at_the_blocks() -> None:
    planner = new_planner()
    planned(planner, "a", 0, 700)

    def table() -> list[int]:
        raise AssertionError("nobody asked for blocks")

    assert planner.step([ScheduledRequest("a", 700, 1, table)]).saves == ()


def test_one_token_is_always_left_to_compute() -> None:
    """256 tokens are stored of a prompt of 256: the engine is given 128, as its own cache would."""
    rig = Rig()
    assert rig.prefill("a", PROMPT[:256], range(2)) == 0
    rig.planner.follow(PromptFacts("b", 256), PROMPT[:256])
    assert rig.planner.matched("b", 0) == 128
    rig.planner.follow(PromptFacts("c", 257), PROMPT[:257])
    assert rig.planner.matched("c", 0) == 256


@pytest.mark.parametrize(("own", "gain"), [(0, 640), (128, 512), (640, 0)])
def test_what_the_engine_has_itself_is_not_loaded(own: int, gain: int) -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    assert rig.planner.matched("b", own) == gain
    rig.planner.allocated("b", gain, range(6))
    loads = rig.planner.step([]).loads
    assert [(load.start, load.stop) for load in loads] == [(own, 640)] * bool(gain)


def test_too_little_gain_is_not_worth_a_load() -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.least_tokens = 513
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    assert rig.planner.matched("b", 128) == 0
    assert rig.planner.matched("b", 0) == 640


def test_looking_again_changes_nothing() -> None:
    """vLLM asks again while it has no room."""
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    assert [rig.planner.matched("b", 0) for _ in range(3)] == [640] * 3
    assert rig.planner.step([]).loads == ()


def test_a_load_that_came_in_part_has_the_rest_saved_again() -> None:
    """Of 640 tokens 256 came; the engine goes on from there, and tokens 256 to 640 are stored again."""
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    rig.planner.allocated("b", rig.planner.matched("b", 0), range(6))
    rig.planner.step([])
    (save,) = planned(rig.planner, "b", 256, 444).saves
    assert (save.start, len(save.token_ids)) == (256, 640)


def test_a_load_that_failed_as_a_whole_is_not_tried_again() -> None:
    """vLLM then asks again; a block that is listed but never comes must not hold a request for ever."""
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    rig.planner.allocated("b", rig.planner.matched("b", 0), range(6))
    rig.planner.step([])
    assert rig.planner.matched("b", 0) == 0
    (save,) = planned(rig.planner, "b", 0, 700).saves
    assert (save.start, len(save.token_ids)) == (0, 640)


@pytest.mark.parametrize("save", [True, False])
def test_a_preempted_request_is_loaded_again(save: bool) -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700, save=save), PROMPT)
    for _ in range(2):
        gain = rig.planner.matched("b", 0)
        assert gain == 640
        rig.planner.allocated("b", gain, range(6))
        assert len(rig.planner.step([]).loads) == 1
        assert planned(rig.planner, "b", 640, 60).saves == ()


def test_another_salt_or_adapter_finds_nothing_but_what_is_its_own() -> None:
    store = Store([MemoryTier(1 << 26, NoTrace())])
    rig = Rig(store)
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700, salt="other"), PROMPT)
    assert rig.planner.matched("b", 0) == 0
    assert store.match(Fingerprint("kdn's"), EXACT, "", PROMPT).num_tokens == 0


def test_tokens_count_when_every_rank_has_its_part() -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    ranks = [PRINT, Fingerprint("rank 1")]
    planner = TransferPlanner(rig.store, SIZE, lambda *_: ranks, rig.counts)
    planner.follow(PromptFacts("b", 700), PROMPT)
    assert planner.matched("b", 0) == 0


def test_hints_of_a_request_hold() -> None:
    rig = Rig()
    rig.planner.follow(PromptFacts("a", 700, save=False), PROMPT)
    assert planned(rig.planner, "a", 0, 700).saves == ()
    rig.prefill("b", PROMPT, range(6))
    rig.planner.follow(PromptFacts("c", 700, load=False), PROMPT)
    assert rig.planner.matched("c", 0) == 0
    assert planned(rig.planner, "c", 0, 700).saves == (), "the store has it already"


def test_a_request_that_nobody_named_is_left_alone() -> None:
    planner = new_planner()
    planner.forget("a")
    assert planner.matched("a", 0) == 0
    planner.allocated("a", 128, range(3))
    assert planned(planner, "a", 0, 700) == StepPlan()
    assert planner.tier_of("a") == ""


def test_a_store_that_fails_is_a_miss() -> None:
    class Failing(Store):
        def match(self, *_: object) -> None:  # type: ignore[override]
            raise StoreError("the disk is gone")

    planner = TransferPlanner(
        Failing([MemoryTier(1 << 20, NoTrace())]), SIZE, prints, TransferCounts()
    )
    planner.follow(PromptFacts("a", 700), PROMPT)
    assert planner.matched("a", 0) == 0


def test_the_tier_of_a_hit_is_the_one_that_has_most() -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.follow(PromptFacts("b", 700), PROMPT)
    rig.planner.matched("b", 0)
    assert rig.planner.tier_of("b") == "memory"


def test_nothing_from_before_a_change_of_weights_is_found_after_it() -> None:
    """Each weights' KV comes back under its own name alone; the store keeps both."""
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.planner.renew("new weights")
    assert rig.prefill("b", PROMPT, range(6, 12)) == 0
    assert rig.prefill("c", PROMPT, range(6)) == 640
    assert holds(rig.cache, PROMPT, range(6))
    assert rig.store.match(PRINT, EXACT, "", PROMPT).num_tokens == 640


def test_kv_that_two_weights_made_is_not_stored() -> None:
    """Of 700 tokens 300 were computed with the old weights; preempted, all are with the new ones."""
    rig = Rig()
    rig.planner.follow(PromptFacts("a", 700), PROMPT)
    assert rig.planner.matched("a", 0) == 0
    assert len(planned(rig.planner, "a", 0, 300).saves) == 1
    rig.planner.renew("new weights")
    assert planned(rig.planner, "a", 300, 400).saves == ()
    assert rig.planner.matched("a", 0) == 0
    (save,) = planned(rig.planner, "a", 0, 700).saves
    assert (save.start, len(save.token_ids), save.generation) == (0, 640, "new weights")


def test_what_was_handed_over_for_the_old_weights_is_computed() -> None:
    rig = Rig()
    rig.planner.handed = PRINT
    rig.planner.follow(PromptFacts("a", 700, save=False, recipe=HANDED), PROMPT)
    rig.planner.renew("new weights")
    assert rig.planner.matched("a", 0) == 0


def test_only_a_step_without_work_may_wait() -> None:
    planner = new_planner()
    assert planner.step([]).idle
    assert not planned(planner, "a", 0, 1).idle
