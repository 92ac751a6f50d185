"""Sharing through the engine: a sibling's KV from the store, as the pair's profile says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
import torch

import kdn
from kdn.config import Config
from kdn.core import (
    EXACT,
    Blend,
    Finish,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Share,
    Token,
    Usage,
)
from kdn.reuse.share import LinearMap, shared_recipe
from kdn.trace import Recorder
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import (
    CONTEXT,
    DOCUMENT,
    LAYERS,
    MODULES,
    PRELUDE,
    ask,
    point,
    question,
    settings,
    tell,
)

BEST, PUBLISHED, EXACTLY = Share("best"), Share("published"), Share("exact")


def test_without_a_profile_nothing_is_shared(k: kdn.Kdn) -> None:
    ask(k)
    found, _, usage = ask(k, adapter="a", share=BEST)
    assert (usage.shared, usage.recomputed) == (0, 332)
    assert found == ask(k, adapter="a", reuse=False, salt="x")[0]


def test_plain_reuse_takes_the_whole_context(k: kdn.Kdn) -> None:
    tell(k, [point(work=0.0)], None, "a")
    ask(k)
    shared, _, usage = ask(k, adapter="a", share=BEST)
    assert (usage.exact, usage.shared, usage.recomputed) == (0, CONTEXT, 12)
    assert usage.tiers == {"memory": CONTEXT}
    assert len(shared) == 6


def judged(k: kdn.Kdn, adapter: str | None) -> Usage:
    """Ask for 5 or 6, without a word of sharing: the answer is one of them, with all of the probability."""
    sampling = Sampling(max_tokens=1, ignore_eos=True, allowed=(5, 6), ranked=(5, 6), logprobs=0)
    prompt = Prompt((PRELUDE, DOCUMENT, question()))
    token, finish = k.submit(Request("judged", prompt, sampling, adapter=adapter))
    assert isinstance(token, Token)
    assert isinstance(finish, Finish)
    assert token.token_id in (5, 6)
    assert sum(math.exp(one.logprob) for one in token.alternatives) == pytest.approx(1)
    return finish.usage


def test_a_label_may_be_judged_over_a_siblings_kv(floats: kdn.Kdn) -> None:
    tell(floats, [point(work=0.0)], None, "a")
    ask(floats)
    assert judged(floats, "a").shared == CONTEXT


def test_a_label_may_be_judged_by_a_sender_of_layer_inputs(floats: kdn.Kdn) -> None:
    tell(floats, [point((2, 3), work=0.5)], None, "a")
    assert judged(floats, None).recomputed == 332


def test_it_is_not_for_requests_that_do_not_ask(k: kdn.Kdn) -> None:
    """Where a pair was profiled the default shares; `exact` does not; a blended request keeps to blending."""
    tell(k, [point(work=0.0)], None, "a")
    ask(k)
    own = ask(k, adapter="a", reuse=False, salt="own")[0]
    found, _, usage = ask(k, adapter="a", share=EXACTLY, retention=Retention.NOTHING)
    assert (usage.shared, found) == (0, own)
    assert ask(k, adapter="a", retention=Retention.NOTHING)[2].shared == CONTEXT
    request = k.prompts.request("?").using(BEST, Blend())
    assert request.option(Share) is not None
    *_, finish = k.submit(request)
    assert isinstance(finish, Finish)
    assert finish.usage.shared == 0


@pytest.mark.parametrize("group", [(a, b) for a in range(LAYERS) for b in range(a, LAYERS)])
def test_a_sender_of_equal_weights_loses_nothing_for_any_group(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, group: tuple[int, int]
) -> None:
    """Bit for bit: `twin` has the weights of a, and settings that only its fingerprint knows."""
    lossless(folders, tmp_path, group, settings(tmp_path))


@pytest.mark.parametrize("group", [(0, 1), (1, 2)])
def test_a_long_context_is_cut_in_passes(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, group: tuple[int, int]
) -> None:
    """332 rows in passes of at most 128: the same bits."""
    small = replace_engine(settings(tmp_path), max_batch_tokens=128)
    lossless(folders, tmp_path, group, small)


def replace_engine(config: Config, **changed: int) -> Config:
    engine = msgspec.structs.replace(config.engine, **changed)
    return msgspec.structs.replace(config, engine=engine)


def lossless(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, group: tuple[int, int], config: Config
) -> None:
    """The twin over the KV of a, with the group computed, says what it says alone."""
    base, adapters = folders
    twin = write_adapter(tmp_path / "twin", 0, MODULES)
    said = json.loads((twin / "adapter_config.json").read_text("utf-8"))
    (twin / "adapter_config.json").write_text(json.dumps(said | {"rank_pattern": {"x": 4}}))
    both = {"a": adapters["a"], "twin": twin}
    with kdn.open(base, config=config, dtype="float32", adapters=both) as k:
        assert k.model.fingerprints.of("a") != k.model.fingerprints.of("twin")
        whole = group == (0, LAYERS - 1)
        tell(k, [point(group, work=1.0 if whole else 0.5)], "a", "twin")
        ask(k, adapter="a")
        own = ask(k, adapter="twin", reuse=False, salt="own")
        found = ask(k, adapter="twin", share=PUBLISHED)
        assert found[2].shared == (0 if whole else CONTEXT)
        assert found[:2] == own[:2]


def test_the_senders_inputs_are_stored_for_those_who_begin_there(k: kdn.Kdn) -> None:
    """A profile that begins at layer 2 makes the base store what enters layer 2, and nothing else."""
    tell(k, [point((2, 3), work=0.5)], None, "a")
    ask(k)
    match = k.store.match(
        k.model.fingerprints.of(None), EXACT, "", (*PRELUDE.token_ids, *DOCUMENT.token_ids)
    )
    assert match.num_tokens == CONTEXT
    for hit in match.hits:
        reader = k.store.open(hit)
        assert reader is not None
        with reader:
            assert [layer for layer in range(LAYERS) if reader.holds_hidden(layer)] == [2]
    _, _, usage = ask(k, adapter="a", share=PUBLISHED)
    assert (usage.shared, usage.recomputed) == (CONTEXT, 12)


def test_blocks_without_inputs_are_shared_only_where_none_are_needed(k: kdn.Kdn) -> None:
    ask(k)  # before the profile is known: no layer inputs
    tell(k, [point((2, 3), work=0.5, kl=0.005), point((0, 1), work=0.6, kl=0.01)], None, "a")
    trace = k.trace
    assert isinstance(trace, Recorder)
    _, _, usage = ask(k, adapter="a", share=PUBLISHED)
    assert usage.shared == CONTEXT
    assert [event.fields["how"] for event in trace.events("share.plan")] == ["layers 0-1"]


def test_what_is_no_sooner_than_a_prefill_is_not_shared(k: kdn.Kdn) -> None:
    """For 320 tokens reuse takes 0.2 s and a prefill 0.15 s by the profile; then the prefill takes 0.3 s."""
    reuse = point(work=0.0, times=((220, 0.15), (420, 0.25)))
    tell(k, [reuse], None, "a", prefill_times=((220, 0.1), (420, 0.2)))
    ask(k)
    own = ask(k, adapter="a", reuse=False, salt="own")[0]
    found, _, usage = ask(k, adapter="a", share=BEST, retention=Retention.NOTHING)
    assert (usage.shared, usage.recomputed, found) == (0, 332, own)
    assert (usage.stored, usage.declined) == (CONTEXT, CONTEXT)
    trace = k.trace
    assert isinstance(trace, Recorder)
    (event,) = trace.events("share.not_worth")
    assert (event.fields["quickest_ms"], event.fields["prefill_ms"]) == pytest.approx((200, 150))
    tell(k, [reuse], None, "a", prefill_times=((220, 0.2), (420, 0.4)))
    assert ask(k, adapter="a", share=BEST)[2].shared == CONTEXT


def test_rows_are_computed_where_the_question_looks(k: kdn.Kdn) -> None:
    """A quarter of 320 rows; all of them would be the model's own answer."""
    tell(k, [point(ratio=0.25, work=0.35)], None, "a")
    ask(k)
    _, _, usage = ask(k, adapter="a", share=BEST)
    assert (usage.shared, usage.recomputed) == (240, 92)


def test_a_map_of_nothing_changes_no_bit_and_one_of_something_does(k: kdn.Kdn) -> None:
    width = 2 * 2 * 16
    nothing = LinearMap(torch.zeros(LAYERS, width, width), torch.zeros(LAYERS, width))
    tell(k, [point(work=0.0)], None, "a")
    ask(k)
    plain = ask(k, adapter="a", share=BEST, retention=Retention.NOTHING)
    tell(k, [point(mapped=True, work=0.05)], None, "a", nothing)
    same = ask(k, adapter="a", share=BEST, retention=Retention.NOTHING)
    assert same[2].shared == CONTEXT
    assert same[:2] == plain[:2]
    strong = LinearMap(torch.zeros(LAYERS, width, width), torch.ones(LAYERS, width))
    tell(k, [point(mapped=True, work=0.05)], None, "a", strong)
    other = ask(k, adapter="a", share=BEST, retention=Retention.NOTHING)
    assert other[1] != plain[1]


def test_what_was_shared_is_tainted_and_serves_the_next_turn(k: kdn.Kdn) -> None:
    """No exact block of the receiver comes into being; a later turn shares its own tainted ones.

    Of 344 tokens the question before is kept, too, so only the new one is computed.
    """
    reuse = point(work=0.0)
    tell(k, [reuse], None, "a")
    ask(k)
    ask(k, adapter="a", share=BEST, retention=Retention.ALL)
    receiver, tokens = k.model.fingerprints.of("a"), (*PRELUDE.token_ids, *DOCUMENT.token_ids)
    assert k.store.match(receiver, EXACT, "", tokens).num_tokens == 0
    assert k.store.match(receiver, shared_recipe(reuse), "", tokens).num_tokens == CONTEXT
    talk = (PRELUDE, DOCUMENT, Segment(Role.HISTORY, question().token_ids), question(2))
    _, _, usage = ask(k, *talk, adapter="a", share=BEST)
    assert (usage.shared, usage.recomputed) == (CONTEXT + 12, 12)
    assert ask(k, *talk, adapter="a", share=EXACTLY)[2].exact == 0


def test_the_own_exact_prefix_comes_first(k: kdn.Kdn) -> None:
    """The receiver has read the prelude and document one; the sibling both documents.

    Later turns find what was shared after the exact prefix, and the history that followed it.
    """
    second = Segment(Role.DOCUMENT, tuple(reversed(DOCUMENT.token_ids)))
    tell(k, [point(work=0.0)], None, "a")
    ask(k, PRELUDE, DOCUMENT, second, question())
    ask(k, PRELUDE, DOCUMENT, question(), adapter="a", share=EXACTLY)
    _, _, usage = ask(k, PRELUDE, DOCUMENT, second, question(), adapter="a", share=BEST)
    assert (usage.exact, usage.shared, usage.recomputed) == (CONTEXT, 300, 12)
    talk = [PRELUDE, DOCUMENT, second]
    for seed, shared in ((1, 300), (2, 312), (3, 324)):
        talk.append(Segment(Role.HISTORY, question(seed).token_ids))
        _, _, usage = ask(k, *talk, question(seed + 1), adapter="a", share=BEST)
        assert (usage.exact, usage.shared, usage.recomputed) == (CONTEXT, shared, 24)
    assert ask(k, *talk, question(), adapter="a", share=EXACTLY)[2].exact == CONTEXT


def test_it_tells_where_the_siblings_tokens_stand(floats: kdn.Kdn) -> None:
    """The receiver has read 100 tokens of the document; blocks of the sibling begin at 20, 276 and 532."""
    long = Segment(Role.DOCUMENT, DOCUMENT.token_ids * 2)
    tell(floats, [point(ratio=0.25, work=0.35)], None, "a")
    ask(floats, PRELUDE, long, question())
    begun = Segment(Role.DOCUMENT, long.token_ids[:100])
    ask(floats, PRELUDE, begun, question(), adapter="a", share=EXACTLY)
    _, _, usage = ask(floats, PRELUDE, long, question(), adapter="a", share=BEST)
    assert (usage.exact, usage.shared, usage.moved) == (120, 258, ((276, 620),))


def test_what_a_sibling_read_stands_in_for_rows_before_an_invocation(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """An aLoRA is invoked in the history, at position 322: its rows from there on are its own."""
    base, adapters = folders
    invoked, called = write_adapter(tmp_path / "invoked", 2, MODULES), (201, 202, 203)
    said = json.loads((invoked / "adapter_config.json").read_text("utf-8"))
    said |= {"alora_invocation_tokens": called}
    (invoked / "adapter_config.json").write_text(json.dumps(said))
    both = {"a": adapters["a"], "invoked": invoked}
    talk = (PRELUDE, DOCUMENT, Segment(Role.HISTORY, (7, 8, *called, 9)), question())
    with kdn.open(base, config=settings(tmp_path), dtype="float32", adapters=both) as k:
        tell(k, [point(work=0.0)], "a", None)
        ask(k, *talk, adapter="a")
        _, _, usage = ask(k, *talk, adapter="invoked", share=BEST)
        assert (usage.shared, usage.recomputed) == (322, 16)
        _, _, usage = ask(k, *talk, adapter="invoked", share=BEST)
        assert (usage.shared, usage.recomputed) == (326, 12), "its own are found again"


def test_salts_stay_apart(k: kdn.Kdn) -> None:
    tell(k, [point(work=0.0)], None, "a")
    ask(k, salt="one")
    assert ask(k, adapter="a", share=BEST, salt="two")[2].shared == 0
    assert ask(k, adapter="a", share=BEST, salt="one")[2].shared == CONTEXT


def test_a_setting_shares_for_requests_that_do_not_say(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """The store finds the sibling's entry by itself; idle time compares the first shared answer."""
    base, adapters = folders
    trace = Recorder()
    chosen = settings(tmp_path, mode="best", guard_every="1")
    with kdn.open(base, config=chosen, dtype="float32", adapters=adapters, trace=trace) as k:
        tell(k, [point(work=0.0)], None, "a")
        ask(k)
        assert ask(k, adapter="a")[2].shared == CONTEXT
        k.catch_up()
        assert trace.count("share.guard") >= 1


@pytest.mark.parametrize("retention", Retention)
def test_a_receiver_whose_answers_are_too_far_off_stops(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path, retention: Retention
) -> None:
    """A map that adds 3 to every key and value: after four comparisons the model computes itself, also
    what it has stored over the sibling's KV."""
    base, adapters = folders
    width = 2 * 2 * 16
    wrong = LinearMap(torch.zeros(LAYERS, width, width), torch.full((LAYERS, width), 3.0))
    chosen = settings(tmp_path, mode="best", guard_every="1", guard_kl="0.0001")
    with kdn.open(base, config=chosen, dtype="float32", adapters=adapters) as k:
        tell(k, [point(mapped=True, work=0.1)], None, "a", wrong)
        ask(k, retention=Retention.SHARED)
        for seed in range(4):
            asked = (PRELUDE, DOCUMENT, question(seed))
            assert ask(k, *asked, adapter="a", retention=retention)[2].shared == CONTEXT
            k.catch_up()
        found = ask(k, adapter="a", retention=Retention.NOTHING)
        assert (found[2].shared, found[2].recomputed) == (0, 332)
        assert found[:2] == ask(k, adapter="a", reuse=False, salt="own")[:2]
