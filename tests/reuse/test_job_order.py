"""One-token jobs through the engine with a store: who is next, what is found, who may leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import (
    Finish,
    FinishReason,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
)
from kdn.engine import Engine, EngineLimits
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, Stack
from kdn.schedule import RequestQueue, ScheduleDecision, make_policy
from kdn.store import open_store
from tests.engine.runs import load_tiny, shape_of, some_tokens

PREFIX = {"AD": some_tokens(256, 200, seed=1), "BC": some_tokens(256, 200, seed=2)}
JOBS = {"A": ("AD", 10), "B": ("BC", 30), "C": ("BC", 20), "D": ("AD", 40)}
"""Lengths A < C < B < D, as in the paper's example."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


class Shop:
    """An engine stepped by hand over a memory tier of about one prefix."""

    def __init__(self, model: LoadedModel, policy: str, pack_tokens: int, prefixes: float) -> None:
        shape = shape_of(model)
        self.store = open_store(None, memory_bytes=round(prefixes * 256 * shape.token_bytes) + 4096)
        self.reuse = Stack([PrefixReuse(self.store, shape, lambda _: model.decoder.fingerprint)])
        self.made: list[ScheduleDecision] = []
        self.engine = Engine(
            model,
            TorchAttention(),
            self.reuse,
            EngineLimits(1 << 26, pack_tokens=pack_tokens, idle_prefix_bytes=0),
            ManualClock(),
            RequestQueue(make_policy(policy), self.made.append),
            threaded=False,
        )

    def run(self) -> None:
        while self.engine.step():
            pass
        self.engine.check()
        self.store.check()

    def close(self) -> None:
        self.engine.close()
        self.reuse.close()
        self.store.close()

    @property
    def order(self) -> str:
        return "".join(name for decision in self.made for name in decision.admitted)


@pytest.fixture
def shop(tiny: LoadedModel) -> Iterator[Callable[..., Shop]]:
    opened: list[Shop] = []

    def make(policy: str, pack_tokens: int = 1, prefixes: float = 1.2) -> Shop:
        opened.append(Shop(tiny, policy, pack_tokens, prefixes))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def job(name: str) -> Request:
    prefix, own = JOBS[name]
    segments = (
        Segment(Role.DOCUMENT, PREFIX[prefix]),
        Segment(Role.QUESTION, some_tokens(own, 200, seed=ord(name))),
    )
    sampling = Sampling(max_tokens=1, ignore_eos=True, allowed=(5, 6))
    return Request(name, Prompt(segments), sampling, retention=Retention.SHARED)


@pytest.mark.parametrize(
    ("policy", "order", "hits"), [("static", "ACBD", 1), ("calibrated", "ADCB", 2)]
)
def test_the_papers_four_jobs_for_real(
    shop: Callable[..., Shop], policy: str, order: str, hits: int
) -> None:
    """The store holds one prefix; what the engine finds when a job's turn comes is what counts."""
    one = shop(policy)
    streams = [one.engine.submit(job(name)) for name in "ABCD"]
    one.run()
    assert one.order == order
    finished = [list(stream)[-1] for stream in streams]
    assert sum(isinstance(f, Finish) and f.usage.exact == 256 for f in finished) == hits


def test_hits_share_a_pass(shop: Callable[..., Shop]) -> None:
    one = shop("calibrated", pack_tokens=100, prefixes=4)
    for number in range(4):
        one.engine.submit(replace(job("A"), id=f"A{number}"))
    one.run()
    assert [decision.admitted for decision in one.made] == [("A0",), ("A1", "A2", "A3")]


def test_a_job_that_is_withdrawn_while_it_waits_is_never_computed(
    shop: Callable[..., Shop],
) -> None:
    one = shop("calibrated")
    kept, gone = one.engine.submit(job("A")), one.engine.submit(job("D"))
    one.engine.step()
    gone.cancel()
    one.run()
    assert one.order == "A"
    events = list(gone)
    assert [e.reason for e in events if isinstance(e, Finish)] == [FinishReason.CANCELLED]
    assert isinstance(next(iter(kept)), Token)


def test_a_job_that_is_withdrawn_while_it_runs_ends_between_layers(
    shop: Callable[..., Shop],
) -> None:
    one = shop("calibrated")
    gone = one.engine.submit(job("A"))
    one.engine.step()  # the first of two layers
    gone.cancel()
    one.run()
    assert [e.reason for e in gone if isinstance(e, Finish)] == [FinishReason.CANCELLED]
    assert one.engine.free_kv() == 1 << 26
    after = one.engine.submit(job("D"))
    one.run()
    assert isinstance(next(iter(after)), Token)
