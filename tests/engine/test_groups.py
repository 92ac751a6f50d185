"""Plans that compute a group of layers and load the others: bitwise a full prefill, in one pass or many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdn.clock import SystemClock
from kdn.core import (
    Enter,
    Finish,
    GivenRows,
    LayerKV,
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    RowRule,
    Sampling,
    Segment,
    StoredRun,
    Token,
)
from kdn.engine import Engine, EngineLimits
from kdn.engine.batch import most_rows
from kdn.errors import CorruptBlock
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from tests.engine.runs import HeldSource, Ran, Watcher, decode, load_tiny, run, some_tokens

LAYERS, CONTEXT, QUESTION = 4, 300, 20
TOTAL = CONTEXT + QUESTION


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], model_cache: Path
) -> LoadedModel:
    folder = tiny_model("llama", num_hidden_layers=LAYERS, max_position_embeddings=1024)
    return load_tiny(folder, model_cache, request.param)


TOKENS = some_tokens(TOTAL, 200, seed=4)


@dataclass
class HeldStates:
    """A source of layer inputs in memory, that notes what is asked of it."""

    states: Tensor
    log: list[str]
    taken: list[tuple[int, int]] = field(default_factory=list)
    broken: int = 0
    """How many takes fail."""

    def start(self) -> None:
        self.log.append("states")

    def take(self, start: int, stop: int) -> Tensor:
        if self.broken:
            self.broken -= 1
            raise CorruptBlock("the states are damaged")
        self.taken.append((start, stop))
        return self.states[start:stop]

    def close(self) -> None:
        self.log.append("closed")


class LoggedSource(HeldSource):
    """KV in memory that writes down when each layer is asked for."""

    log: list[str]

    def start(self, layer: int) -> None:
        super().start(layer)
        self.log.append(f"layer {layer}")


@dataclass(frozen=True)
class Sender:
    """What the same model's full prefill leaves: KV, the inputs of all layers, and the answer."""

    full: Ran
    hidden: dict[int, Tensor]

    def group(self, first: int, last: int) -> tuple[Plan, LoggedSource, HeldStates]:
        """The plan that computes layers [first, last] of the context and takes the others."""
        log: list[str] = []
        kv = LoggedSource(self.full.captured[:, :, :CONTEXT])
        kv.log = log
        states = HeldStates(self.hidden[first][:CONTEXT], log)
        question = GivenRows(tuple(range(CONTEXT, TOTAL)))
        everything = GivenRows(tuple(range(TOTAL)))
        rows: list[RowRule] = [
            everything if first <= layer <= last else question for layer in range(LAYERS)
        ]
        enter = () if first == 0 else (Enter(first, tuple(range(CONTEXT)), source=states),)
        taken = StoredRun(0, kv, layers=(range(first), range(last + 1, LAYERS)))
        return Plan(TOKENS, rows=tuple(rows), stored=(taken,), enter=enter), kv, states


@pytest.fixture(scope="module")
def sender(tiny: LoadedModel) -> Sender:
    watcher = Watcher()
    full = run(tiny, Plan(TOKENS, observers=(watcher,)))
    return Sender(full, watcher.hidden)


GROUPS = [(first, last) for first in range(LAYERS) for last in range(first, LAYERS)]


def same(found: Ran, full: Ran) -> None:
    assert torch.equal(found.logits, full.logits)
    assert torch.equal(found.kv.suffix.k[:, :, :TOTAL], full.kv.suffix.k[:, :, :TOTAL])
    assert torch.equal(found.kv.suffix.v[..., :TOTAL], full.kv.suffix.v[..., :TOTAL])


@pytest.mark.parametrize(("first", "last"), GROUPS)
def test_a_group_over_the_same_models_kv_is_a_full_prefill(
    tiny: LoadedModel, sender: Sender, first: int, last: int
) -> None:
    """Bit for bit: logits, KV of every layer, and the next token."""
    plan, kv, _ = sender.group(first, last)
    found = run(tiny, plan)
    same(found, sender.full)
    token = int(found.logits[-1].argmax())
    (one,) = decode(tiny, [(found.kv, token)])
    again = run(tiny, Plan((*TOKENS, token)))
    assert torch.allclose(one, again.logits, atol=2e-2)
    fetched = set(range(LAYERS)) - set(range(first, last + 1))
    assert set(kv.started) == fetched, "what is computed anyway is not fetched"


@pytest.mark.parametrize("cuts", [(128,), (128, 256), (256,)])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (2, 3), (3, 3)])
def test_a_group_cut_in_passes_is_the_same(
    tiny: LoadedModel, sender: Sender, first: int, last: int, cuts: tuple[int, ...]
) -> None:
    plan, kv, states = sender.group(first, last)
    same(run(tiny, plan, cuts=cuts), sender.full)
    assert kv.started == sorted(set(kv.started)), "stored KV is read in the first pass alone"
    if first:
        edges = [0, *cuts, TOTAL]
        ranges = [(min(a, CONTEXT), min(b, CONTEXT)) for a, b in pairwise(edges)]
        assert states.taken == ranges, "each pass takes the rows of its range"


def test_a_plan_may_have_no_row_at_layer_0(tiny: LoadedModel, sender: Sender) -> None:
    """All columns of layers 0 and 1 are stored, and every row enters at layer 2."""
    whole = HeldSource(sender.full.captured)
    rows: tuple[RowRule, ...] = (
        GivenRows(()),
        GivenRows(()),
        *[GivenRows(tuple(range(TOTAL)))] * 2,
    )
    plan = Plan(
        TOKENS,
        rows=rows,
        stored=(StoredRun(0, whole, layers=(range(2),)),),
        enter=(Enter(2, tuple(range(TOTAL)), sender.hidden[2]),),
    )
    same(run(tiny, plan), sender.full)


def test_a_plan_of_stored_columns_alone_computes_nothing(tiny: LoadedModel, sender: Sender) -> None:
    plan = Plan(TOKENS, stored=(StoredRun(0, HeldSource(sender.full.captured)),), logits=())
    found = run(tiny, plan)
    assert found.logits.numel() == 0
    assert found.kv.num_columns == TOTAL
    assert torch.equal(found.kv.suffix.v[..., :TOTAL], sender.full.kv.suffix.v[..., :TOTAL])


def test_layer_inputs_are_asked_for_before_any_stored_kv(tiny: LoadedModel, sender: Sender) -> None:
    plan, kv, _ = sender.group(1, 2)
    run(tiny, plan)
    assert kv.log[:2] == ["states", "layer 0"]


# --- through the engine ----------------------------------------------------------------------


class GroupPlanner:
    """Plans every request as a group of layers."""

    def __init__(self, make: Callable[[], Plan]) -> None:
        self._make = make
        self.num_plans = 0

    def cached_tokens(self, request: Request) -> int:
        return 0

    def plan(self, request: Request) -> Planned:
        self.num_plans += 1
        return Planned(replace(self._make(), keep=None), shared=CONTEXT)

    def retain(self, request: Request, retained: RetainedKV) -> None:
        raise AssertionError("nothing is retained")


def answer(
    model: LoadedModel, planner: GroupPlanner, max_batch_tokens: int
) -> tuple[list[int], int]:
    """Greedy tokens, and how many times the loop had to step before the first one."""
    limits = EngineLimits(1 << 28, max_batch_tokens=max_batch_tokens)
    engine = Engine(model, TorchAttention(), planner, limits, SystemClock(), threaded=False)
    prompt = Prompt((Segment(Role.QUESTION, TOKENS),))
    sampling = Sampling(max_tokens=5, ignore_eos=True)
    stream = engine.submit(Request("r", prompt, sampling, retention=Retention.NOTHING))
    steps = 0
    while engine.step():
        steps += 1
    *tokens, last = stream
    assert isinstance(last, Finish)
    assert last.usage.shared == CONTEXT
    engine.check()
    engine.close()
    return [one.token_id for one in tokens if isinstance(one, Token)], steps


def test_the_engine_cuts_such_a_plan_and_answers_the_same(
    tiny: LoadedModel, sender: Sender
) -> None:
    """320 rows in the group: one pass of 4 layers, or three passes of 128 rows at most."""
    made: list[HeldStates] = []

    def make() -> Plan:
        plan, _, states = sender.group(1, 2)
        made.append(states)
        return plan

    whole, steps_whole = answer(tiny, GroupPlanner(make), 512)
    cut, steps_cut = answer(tiny, GroupPlanner(make), 128)
    assert cut == whole
    assert steps_cut - steps_whole == 2 * LAYERS
    assert made[0].taken == [(0, 300)]
    assert made[1].taken == [(0, 128), (128, 256), (256, 300)]
    assert all(states.log[-1] == "closed" for states in made)


def test_layer_inputs_that_are_damaged_are_a_new_plan_not_an_error(
    tiny: LoadedModel, sender: Sender
) -> None:
    damaged = [1, 0]

    def make() -> Plan:
        plan, _, states = sender.group(2, 3)
        states.broken = damaged.pop(0)
        return plan

    planner = GroupPlanner(make)
    tokens, _ = answer(tiny, planner, 512)
    assert planner.num_plans == 2
    assert len(tokens) == 5


@given(
    first=st.integers(0, 40),
    size=st.integers(1, 40),
    enters=st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 79))), max_size=3),
    given_rows=st.lists(st.sets(st.integers(0, 79)), min_size=4, max_size=4),
)
def test_most_rows_are_those_of_a_walk_over_the_layers(
    first: int, size: int, enters: list[tuple[int, set[int]]], given_rows: list[set[int]]
) -> None:
    """The dull twin: sets of positions, layer by layer, with rows that enter before the rule."""
    plan = Plan(
        tuple(range(80)),
        rows=tuple(GivenRows(tuple(sorted(rows))) for rows in given_rows),
        enter=tuple(
            Enter(layer, tuple(sorted(rows)), torch.zeros(len(rows), 1)) for layer, rows in enters
        ),
    )
    window = set(range(first, first + size))
    alive, counts = given_rows[0] & window, [len(given_rows[0] & window)]
    for layer in range(4):
        for at, rows in enters:
            alive = alive | (rows & window) if at == layer else alive
        alive = alive & given_rows[layer] if layer else alive & given_rows[0]
        counts.append(len(alive))
    assert most_rows(plan, first, first + size) == max(counts)


def test_layer_kv_of_a_part_that_supplies_nothing_is_not_joined(
    tiny: LoadedModel, sender: Sender
) -> None:
    """Observers see stored columns where there are any, and None where layers are computed."""
    seen: dict[int, LayerKV | None] = {}
    plan, _, _ = sender.group(1, 2)
    run(tiny, replace(plan, observers=(lambda view: seen.update({view.layer: view.stored}),)))
    assert [layer for layer, stored in seen.items() if stored is None] == [1, 2]
