"""Plans say what is computed; these are the rules that the executor relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdn.core import (
    ALL_ROWS,
    Choose,
    ColumnScale,
    Enter,
    GivenRows,
    LayerKV,
    LayerView,
    Plan,
    StoredRun,
)
from kdn.engine.alone import HeldKV
from kdn.errors import BadInput

KV = HeldKV(torch.zeros(2, 2, 3, 1, 4))
PLAN = Plan((1, 2, 3, 4, 5))


class Unasked:
    """Attention sums that nothing asks for."""

    def __call__(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed on demand only")

    by_head = __call__


def leading(view: LayerView, count: int) -> torch.Tensor:
    return torch.arange(count)


def test_one_rule_is_for_every_layer_and_more_are_one_each() -> None:
    assert PLAN.rule(0) is PLAN.rule(7) is ALL_ROWS
    both = replace(PLAN, rows=(GivenRows((4,)), ALL_ROWS))
    assert both.rule(0) == GivenRows((4,))
    assert both.rule(1) is ALL_ROWS


def test_a_prefix_and_stored_runs_cover_as_many_columns_as_their_sources_hold() -> None:
    assert PLAN.num_prefix == 0
    assert replace(PLAN, prefix=KV).num_prefix == 3
    assert (StoredRun(2, KV).start, StoredRun(2, KV).stop) == (2, 5)


def test_a_plan_is_steady_while_no_layer_changes_or_observes_its_rows() -> None:
    assert PLAN.is_steady
    assert replace(PLAN, prefix=KV, scale=(ColumnScale(0, (1,), 2.0),)).is_steady
    assert replace(PLAN, rows=(GivenRows((4,)), ALL_ROWS)).is_steady
    assert not replace(PLAN, rows=(ALL_ROWS, GivenRows((4,)))).is_steady
    assert not replace(PLAN, rows=(Choose(leading, 2),)).is_steady
    assert not replace(PLAN, observers=(lambda _: None,)).is_steady
    assert not replace(PLAN, enter=(Enter(1, (0,), torch.zeros(1, 8)),)).is_steady


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_without_a_logarithm_is_refused(factor: float) -> None:
    with pytest.raises(BadInput, match="give a number above 0"):
        ColumnScale(0, (1,), factor)


def test_a_stored_run_supplies_all_layers_or_those_it_names() -> None:
    assert all(StoredRun(0, KV).supplies(layer) for layer in range(9))
    partly = StoredRun(0, KV, layers=(range(2), range(5, 7)))
    assert [layer for layer in range(9) if partly.supplies(layer)] == [0, 1, 5, 6]


def test_rows_that_enter_are_cut_to_a_range_with_their_states() -> None:
    states = torch.arange(8.0).view(4, 2)
    enter = Enter(1, (3, 5, 6, 9), states)
    positions, found = enter.states(5, 9)
    assert positions == (5, 6)
    assert torch.equal(found, states[1:3])
    assert enter.states(20, 30)[0] == ()


def test_a_shift_is_added_to_keys_alone_and_to_a_copy() -> None:
    k, v = torch.ones(3, 1, 2), torch.ones(3, 1, 2)
    shifted = LayerKV(k, v, torch.tensor([[1.0, -2.0]])).shifted()
    assert shifted.k.tolist() == [[[2.0, -1.0]]] * 3
    assert torch.equal(shifted.v, v)
    assert k.sum() == 6
    plain = LayerKV(k, v)
    assert plain.shifted() is plain
    assert plain.num_tokens == 3


def test_stored_columns_are_joined_once_and_only_when_read() -> None:
    joined: list[int] = []

    def join() -> LayerKV:
        joined.append(1)
        return LayerKV(torch.zeros(5, 1, 2), torch.zeros(5, 1, 2))

    rows = torch.arange(5)
    view = LayerView(
        layer=0,
        rows=rows,
        hidden=torch.zeros(5, 8),
        query=torch.zeros(5, 2, 2),
        fresh=LayerKV(torch.zeros(5, 1, 2), torch.zeros(5, 1, 2)),
        join_stored=join,
        attend=Unasked(),
    )
    assert not joined
    assert view.stored is view.stored
    assert joined == [1]
