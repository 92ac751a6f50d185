"""Profiles of pairs: equal weights lose nothing, a run that is killed goes on, unequal models are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kdn.calibration.share_profile import (
    PairSide,
    ShareItem,
    ShareProfiler,
    default_choices,
    refuse_unequal,
)
from kdn.calibration.share_run import ShareQuestion, item_of, profile_again, profile_pair
from kdn.clock import ManualClock
from kdn.errors import BadInput
from kdn.machine.text import read_json_lines
from kdn.model import LoadedModel, Tokenizer, load_model
from kdn.model.attention import TorchAttention
from kdn.reuse.share import ShareChoice, ShareRecords
from tests.engine.runs import some_tokens
from tests.engine.test_company import weaken, write_adapter

LAYERS = 4
ITEMS = [
    ShareItem(some_tokens(60 + n, 200, seed=n), some_tokens(9, 200, seed=50 + n), (7, 8, 9))
    for n in range(3)
]


@pytest.fixture(scope="module")
def loaded(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, model_cache: Path
) -> LoadedModel:
    base = tiny_model("llama", num_hidden_layers=LAYERS, max_position_embeddings=1024)
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "a", 1, ("q_proj", "v_proj"))
    weaken(adapter)
    return load_model(
        base, cache_dir=model_cache, dtype="float32", device="cpu", adapters={"a": adapter}
    )


def side(loaded: LoadedModel, name: str) -> PairSide:
    return PairSide(name, loaded, TorchAttention(), loaded.adapters.get(name))


def test_the_choices_are_every_group_at_the_granularity() -> None:
    """Four blocks of two layers: ten contiguous groups less the whole; every arm of rows and map."""
    groups = [one.group for one in default_choices(8, 2) if one.group is not None]
    assert len(groups) == 9
    assert (0, 7) not in groups
    assert {(0, 1), (2, 7), (6, 7)} <= set(groups)
    assert sum(one.mapped for one in default_choices(8, 2)) == 4


def test_a_pair_of_equal_weights_loses_nothing_whatever_is_reused(loaded: LoadedModel) -> None:
    """The control of the paper: the likeliest tokens agree and no probability moves."""
    profiler = ShareProfiler(side(loaded, "a"), side(loaded, "a"))
    choices = default_choices(LAYERS, 1)
    own = profiler.own_nll(ITEMS[0])
    for choice, found in profiler.measure(ITEMS[0], choices):
        assert (found.kl, found.agrees) == (0.0, True), choice.name
        assert found.nll == own


def test_work_is_the_share_of_rows(loaded: LoadedModel) -> None:
    """Two of four layers of 60 rows; a tenth of the rows at all layers, and 9 of the probe at two."""
    profiler = ShareProfiler(side(loaded, "base"), side(loaded, "a"))
    choices = [ShareChoice(), ShareChoice((1, 2)), ShareChoice(ratio=0.1)]
    works = [found.work for _, found in profiler.measure(ITEMS[0], choices)]
    assert works[:2] == [0.0, 0.5]
    assert works[2] == pytest.approx(0.1 + 9 * 2 / 240)


def test_all_rows_are_the_receivers_own_and_a_random_choice_is_another(loaded: LoadedModel) -> None:
    profiler = ShareProfiler(side(loaded, "base"), side(loaded, "a"))
    some, every = ShareChoice(ratio=0.3), ShareChoice(ratio=1.0)
    found = dict(profiler.measure(ITEMS[0], [some, every]))
    assert found[every].kl == 0
    drawn = dict(profiler.measure(ITEMS[0], [some], random_rows=True))
    assert drawn[some].kl != found[some].kl


def test_the_receivers_own_inputs_leave_the_error_of_the_others(loaded: LoadedModel) -> None:
    """An oracle: a group to the last layer with true inputs errs by the layers before it alone."""
    profiler = ShareProfiler(side(loaded, "base"), side(loaded, "a"))
    group = ShareChoice((2, 3))
    theirs = dict(profiler.measure(ITEMS[1], [group]))[group]
    oracle = dict(profiler.measure(ITEMS[1], [group], oracle=True))[group]
    assert theirs.kl != oracle.kl


def test_a_map_brings_the_receiver_closer(loaded: LoadedModel) -> None:
    profiler = ShareProfiler(side(loaded, "base"), side(loaded, "a"))
    made = profiler.fit([some_tokens(200, 200, seed=900 + n) for n in range(10)])
    reuse, mapped = ShareChoice(), ShareChoice(mapped=True)
    kl = {reuse: 0.0, mapped: 0.0}
    for item in ITEMS:
        for choice, found in profiler.measure(item, [reuse, mapped], made):
            kl[choice] += found.kl
    assert kl[mapped] < 0.8 * kl[reuse]


def test_a_run_that_was_killed_goes_on(loaded: LoadedModel, tmp_path: Path) -> None:
    """Two items are measured, then one more: the first two are not computed again."""
    records, told = ShareRecords(tmp_path), list[str]()
    choices = [ShareChoice(), ShareChoice((2, 3))]

    def stop(what: str, done: int, _of: int) -> None:
        told.append(f"{what} {done}")
        if len(told) == 2:
            raise KeyboardInterrupt

    sender, receiver = side(loaded, "base"), side(loaded, "a")
    with pytest.raises(KeyboardInterrupt):
        profile_pair(sender, receiver, ITEMS, [], choices, records, stop)
    journal = records.folder(sender.fingerprint, receiver.fingerprint) / "items.jsonl"
    before = journal.read_text("utf-8")
    journal.write_text(before + '{"own": 1', "utf-8")  # torn
    record = profile_pair(sender, receiver, ITEMS, [], choices, records)
    assert journal.read_text("utf-8").startswith(before)
    assert [one.contexts for one in record.points] == [3, 3]
    assert ShareRecords(tmp_path).get(sender.fingerprint, receiver.fingerprint) == record
    assert record.points[1].work == 0.5


class Ticking(ManualClock):
    """A second passes between two looks at it."""

    def now(self) -> float:
        self.advance(1.0)
        return super().now()


def test_the_ways_of_the_frontier_are_timed_beside_the_prefill(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    """The whole group costs more work and is no nearer than half of it for equal weights: it is not timed."""
    records, choices = ShareRecords(tmp_path), [ShareChoice((0, 1)), ShareChoice((0, 3))]
    sender, receiver = side(loaded, "base"), side(loaded, "a")
    record = profile_pair(sender, receiver, ITEMS, [], choices, records, lambda *_: None, Ticking())
    each = ((256, 1.0), (1024, 1.0))
    assert record.prefill_times == each
    timed = {one.choice for one in record.usable("best")}
    assert {one.choice: one.times for one in record.points} == {
        choice: each if choice in timed else () for choice in choices
    }
    assert ShareRecords(tmp_path).get(sender.fingerprint, receiver.fingerprint) == record


def test_a_profile_of_another_machine_keeps_its_losses_and_is_timed_here(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    """The map is fitted here, once, on twelve contexts of 200 tokens."""
    there, here = ShareRecords(tmp_path / "there"), ShareRecords(tmp_path / "here")
    contexts = [some_tokens(200, 200, seed=900 + n) for n in range(12)]
    choices = [ShareChoice(), ShareChoice(mapped=True)]
    sender, receiver = side(loaded, "base"), side(loaded, "a")
    measured = profile_pair(sender, receiver, ITEMS, contexts, choices, there)
    known = msgspec.structs.replace(measured, sender="old", receiver="older")
    told = list[str]()

    def tell(what: str, done: int, _of: int) -> None:
        told.append(f"{what} {done}")

    found = profile_again(known, sender, receiver, ITEMS, contexts, here, tell, Ticking())
    assert (found.sender, found.receiver) == (sender.fingerprint, receiver.fingerprint)
    assert found.without_times() == measured
    assert found.prefill_times == ((256, 1.0), (1024, 1.0))
    assert ShareRecords(tmp_path / "here").get(sender.fingerprint, receiver.fingerprint) == found
    assert told[-2:] == ["tokens of the map 2400", "times 0"]
    told.clear()
    assert profile_again(known, sender, receiver, ITEMS, contexts, here, tell) == measured
    assert told == [], "the map was fitted"


def test_models_that_cannot_share_are_refused_with_the_reason(
    loaded: LoadedModel, tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    small = load_model(tiny_model("llama"), cache_dir=model_cache, dtype="float32", device="cpu")
    with pytest.raises(BadInput, match="models of different shapes share nothing"):
        refuse_unequal(small, loaded)
    other = replace(loaded, tokenizer=replace_digest(loaded))
    with pytest.raises(BadInput, match="different tokenizers"):
        refuse_unequal(other, loaded)


def test_a_model_is_no_pair_with_itself(loaded: LoadedModel, tmp_path: Path) -> None:
    one, records = side(loaded, "a"), ShareRecords(tmp_path)
    with pytest.raises(BadInput, match="sender and receiver are the same model, a"):
        profile_pair(one, side(loaded, "a"), ITEMS, [], [ShareChoice()], records)
    assert not records.folder(one.fingerprint, one.fingerprint).exists()


def replace_digest(loaded: LoadedModel) -> Tokenizer:
    tokenizer = copy(loaded.tokenizer)
    object.__setattr__(tokenizer, "digest", "another")
    return tokenizer


def test_data_is_read_line_by_line(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    line = {"context": "The lamp is lit.", "question": "Is it?", "answer": "yes"}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"more": 1}) + "\n")
    asked = read_json_lines(path, ShareQuestion)
    item = item_of(asked[0], loaded)
    assert loaded.tokenizer.decode(item.answer) == "yes"
    assert "The lamp is lit." in loaded.tokenizer.decode(item.context)
    with pytest.raises(BadInput, match="is empty"):
        item_of(replace_answer(asked[0]), loaded)
    path.write_text('{"context": "x"}\n')
    with pytest.raises(BadInput, match=r"line 1: .*question"):
        read_json_lines(path, ShareQuestion)


def replace_answer(asked: ShareQuestion) -> ShareQuestion:
    return msgspec.structs.replace(asked, answer="")
