"""Groups of requests that run together: none waits for ever, and none keeps others waiting for ever.

In the tiny model a token of KV takes 2 layers x 2 x 2 heads x 16 x 4 bytes = 512 bytes; a request's own
KV comes in pieces of 256 tokens, 131,072 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.core import Plan, Retention
from kdn.engine import EngineLimits
from kdn.errors import PromptTooLong
from kdn.model import LoadedModel
from tests.engine.runs import Failing, load_tiny, run, some_tokens
from tests.engine.test_engine import Bench, Reusing, greedy, ids

PIECE = 131_072


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


def test_a_member_that_is_planned_again_waits_for_room_alone(tiny: LoadedModel) -> None:
    """A stored beginning of 300 tokens takes 352 columns, 180,224 bytes, and two suffixes of a piece fit
    beside it.  It is damaged: each of both then takes two pieces, and one after the other fits."""
    beginning = some_tokens(300, 200)
    kv = run(tiny, Plan(beginning)).captured
    planner = Reusing([Failing(kv), Failing(kv)])
    bench = Bench(tiny, EngineLimits(kv_bytes=180_224 + 2 * PIECE), planner)
    prompts = [(*beginning, 5, 6), (*beginning, 7)]
    streams = [
        bench.submit(str(n), one, group="g", group_size=2, retention=Retention.NOTHING)
        for n, one in enumerate(prompts)
    ]
    bench.drain()
    assert bench.trace.count("engine.replan") == 2
    assert bench.engine.stat().num_waiting == 0
    assert [ids(one) for one in streams] == [greedy(tiny, one, 5) for one in prompts]


@pytest.mark.parametrize("pack_tokens", [None, 10])
def test_a_group_that_can_never_fit_is_refused_and_others_run(
    tiny: LoadedModel, pack_tokens: int | None
) -> None:
    """There is room for one piece, and each of two needs one. The first pack is the group alone."""
    bench = Bench(tiny, EngineLimits(kv_bytes=140_000, pack_tokens=pack_tokens))
    group = [
        bench.submit(name, some_tokens(10, 200), group="g", group_size=2) for name in ("a", "b")
    ]
    small = bench.submit("small", (5, 6, 7))
    bench.drain()
    assert bench.engine.stat().num_waiting == 0
    for stream in group:
        with pytest.raises(PromptTooLong, match=r"2 requests .* budget of 0\.1 MiB"):
            ids(stream)
    assert len(ids(small)) == 5
    assert bench.engine.free_kv() == 140_000


def test_a_group_that_fits_only_if_nothing_is_retained_runs(tiny: LoadedModel) -> None:
    """Two pieces fit; each request needs one, and would have another one noted for the store."""
    bench = Bench(tiny, EngineLimits(kv_bytes=2 * PIECE))
    streams = [
        bench.submit(name, some_tokens(10, 200), group="g", group_size=2, retention=Retention.ALL)
        for name in ("a", "b")
    ]
    bench.drain()
    assert bench.engine.stat().num_waiting == 0
    assert [len(ids(one)) for one in streams] == [5, 5]
    assert not bench.planner.kept


def test_a_group_waits_while_others_hold_the_room(tiny: LoadedModel) -> None:
    """It is refused only where nothing else runs."""
    bench = Bench(tiny, EngineLimits(kv_bytes=2 * PIECE))
    first = bench.submit("first", some_tokens(10, 200), retention=Retention.NOTHING)
    bench.engine.step()
    group = [
        bench.submit(name, (5, 6), group="g", group_size=2, retention=Retention.NOTHING)
        for name in ("a", "b")
    ]
    bench.engine.step()
    assert bench.engine.stat().num_waiting == 2
    bench.drain()
    assert [len(ids(one)) for one in (first, *group)] == [5, 5, 5]
