"""One budget of KV for several engines: nothing is taken twice, and the first that waits comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import Prompt, Request, Retention, Role, Sampling, Segment
from kdn.engine import Engine, EngineLimits, KvBudget, KvPool
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from tests.engine.runs import load_tiny, some_tokens
from tests.engine.test_engine import NoReuse

ONE = 131_072
"""Bytes of KV of a request of at most 256 tokens."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


def test_what_one_engine_holds_the_other_lacks() -> None:
    pool = KvPool(100)
    a, b = KvBudget(pool), KvBudget(pool)
    assert a.reserve("x", 70)
    assert (a.free_bytes, b.free_bytes, a.reserved_bytes, b.reserved_bytes) == (30, 30, 70, 0)
    assert not b.reserve("x", 40)
    assert b.reserve("x", 30), "owners of two engines may have one name"
    a.release("x")
    a.release("x")
    assert (b.free_bytes, b.reserved_bytes) == (70, 30)
    for one in (a, b):
        one.check()


def test_the_first_that_was_refused_goes_first() -> None:
    """60 of 100 are taken; b wants 80 and waits, so that small ones of a cannot go by for ever."""
    pool = KvPool(100)
    woken: list[str] = []
    a = KvBudget(pool, lambda: woken.append("a"))
    b = KvBudget(pool, lambda: woken.append("b"))
    assert a.reserve("first", 60)
    assert not b.reserve("large", 80)
    b.waits()
    assert not a.reserve("small", 10), "the 40 that are free are kept for b"
    a.waits()
    assert b.has_changed() is False
    a.release("first")
    assert woken == ["b"]
    assert b.has_changed()
    assert b.reserve("large", 80)
    b.waits_no_more()
    assert woken == ["b", "a"], "a may ask again"
    assert a.reserve("small", 10)
    a.waits_no_more()


def test_only_what_others_put_back_is_a_change() -> None:
    """An attempt that fails half-way puts back what it took: no reason for the same engine to try again."""
    pool = KvPool(100)
    a, b = KvBudget(pool), KvBudget(pool)
    assert a.reserve("half", 60)
    a.release("half")
    assert (a.has_changed(), b.has_changed(), b.has_changed()) == (False, True, False)


def test_an_engine_that_leaves_gives_all_back() -> None:
    pool = KvPool(100)
    a, b = KvBudget(pool), KvBudget(pool)
    assert a.reserve("x", 100)
    a.waits()
    pool.leave(a)
    a.waits()
    assert b.reserve("y", 100), "one that has left stands before nobody"


def test_turns_come_in_the_order_in_which_they_are_asked_for() -> None:
    turn, order = KvPool(1).turn(), list[int]()

    def take(number: int) -> None:
        with turn:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    with turn:
        for number, thread in enumerate(threads):
            thread.start()
            while turn.num_waiting < number + 2:
                thread.join(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2]


def test_two_engines_share_one_budget(tiny: LoadedModel) -> None:
    """Room for one request: the other engine's waits until that has ended, and then runs."""
    pool = KvPool(140_000)
    a, b = (_engine(tiny, pool) for _ in range(2))
    first, second = a.submit(_request("first")), b.submit(_request("second"))
    a.step()
    for _ in range(5):
        b.step()
    assert (a.free_kv(), b.stat().num_waiting, b.stat().num_prefilling) == (140_000 - ONE, 1, 0)
    _drain(a)
    assert len(list(first)) == 4
    _drain(b)
    assert len(list(second)) == 4
    assert b.free_kv() == 140_000
    for one in (a, b):
        one.check()
        one.close()


def test_a_request_that_is_withdrawn_keeps_nobody_waiting(tiny: LoadedModel) -> None:
    """300,000 bytes hold two requests; b's of 512 columns waits for a's first and goes before its second."""
    pool = KvPool(300_000)
    a, b = (_engine(tiny, pool) for _ in range(2))
    a.submit(_request("first"))
    a.step()
    large = b.submit(_request("large", max_tokens=300))
    b.step()
    small = a.submit(_request("small"))
    a.step()
    assert (a.stat().num_waiting, b.stat().num_waiting) == (1, 1)
    large.cancel()
    b.step()
    _drain(a)
    assert len(list(small)) == 4
    for one in (a, b):
        one.close()


def test_half_a_group_keeps_no_other_engine_waiting(tiny: LoadedModel) -> None:
    """What was refused is withdrawn, and what is left waits for its group and not for memory."""
    pool = KvPool(300_000)
    a, b = (_engine(tiny, pool) for _ in range(2))
    a.submit(_request("first"))
    a.step()
    b.submit(replace(_request("half"), group="g", group_size=2))
    large = b.submit(_request("large", max_tokens=300))
    b.step()
    large.cancel()
    b.step()
    assert b.stat().num_waiting == 1
    small = a.submit(_request("small"))
    _drain(a)
    assert a.stat().num_waiting == 0
    assert len(list(small)) == 4
    for one in (a, b):
        one.close()


def test_an_engine_that_is_closed_at_work_is_idle(tiny: LoadedModel) -> None:
    """Others of its process look whether all are, before they work in the background."""
    one = _engine(tiny, KvPool(140_000))
    one.submit(_request("half"))
    one.step()
    assert not one.is_idle()
    one.close()
    assert one.is_idle()


def _engine(model: LoadedModel, pool: KvPool) -> Engine:
    limits = EngineLimits(kv_bytes=pool.total_bytes)
    return Engine(
        model, TorchAttention(), NoReuse(), limits, ManualClock(), threaded=False, pool=pool
    )


def _request(name: str, max_tokens: int = 3) -> Request:
    prompt = Prompt((Segment(Role.QUESTION, some_tokens(20, 200)),))
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return Request(name, prompt, sampling, retention=Retention.NOTHING)


def _drain(engine: Engine) -> None:
    while engine.step():
        pass
