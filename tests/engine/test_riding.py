"""Requests that decode ride along in passes of plain prompts, and nobody's answer changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.clock import ManualClock
from kdn.core import (
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    TokenIds,
)
from kdn.engine import Engine, EngineLimits, RunningStream, plain
from kdn.engine.executor import StepTimes
from kdn.model import LoadedModel
from kdn.model.attention import AttentionSlice, BoundAttention, TorchAttention
from tests.engine.runs import Failing, HeldSource, load_tiny, some_tokens
from tests.engine.runs import run as passed

KV_BYTES = 1 << 26
SHORT, LONG = some_tokens(9, 200), some_tokens(300, 200, seed=1)
NUM_LAYERS = 2


class Computes:
    """A planner without a store."""

    def plan(self, request: Request) -> Planned:
        return plain(request)

    def cached_tokens(self, request: Request) -> int:
        return 0

    def retain(self, request: Request, kept: object) -> None:
        """Nothing is stored."""


@dataclass
class Notes(Computes):
    """The same, and writes down what KV it is handed by request, in order of positions."""

    kv: dict[str, Tensor]

    def retain(self, request: Request, kept: object) -> None:
        assert isinstance(kept, RetainedKV)
        known = self.kv.get(request.id, kept.kv[:, :, :0])
        assert kept.start == known.shape[2]
        self.kv[request.id] = torch.cat((known, kept.kv), dim=2)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


@pytest.fixture
def engine(tiny: LoadedModel) -> Iterator[Engine]:
    """Stepped by hand, with passes of 128 rows."""
    limits = EngineLimits(KV_BYTES, max_batch_tokens=128, speculative_tokens=0)
    made = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), threaded=False)
    yield made
    made.check()
    made.close()


def ask(
    engine: Engine,
    name: str,
    tokens: TokenIds,
    max_tokens: int,
    retention: Retention = Retention.NOTHING,
) -> tuple[RunningStream, list[int]]:
    """The stream, and the ids that have come of it so far."""
    ids: list[int] = []
    stream = engine.submit(
        Request(
            id=name,
            prompt=Prompt((Segment(Role.QUESTION, tokens),)),
            sampling=Sampling(max_tokens=max_tokens, ignore_eos=True),
            retention=retention,
        )
    )
    stream.on_event(lambda event: ids.append(event.token_id) if isinstance(event, Token) else None)
    return stream, ids


def run(engine: Engine) -> None:
    while engine.step():
        pass


def test_a_running_answer_gets_a_token_from_every_pass_of_a_long_prompt(engine: Engine) -> None:
    _, alone = ask(engine, "short alone", SHORT, 12)
    run(engine)
    _, long_alone = ask(engine, "long alone", LONG, 4)
    run(engine)

    _, short = ask(engine, "short", SHORT, 12)
    while not short:
        engine.step()
    _, long = ask(engine, "long", LONG, 4)
    counts = []
    for _ in range(3 * NUM_LAYERS):  # 300 tokens are passes of 128, 128 and 44
        engine.step()
        counts.append((len(short), len(long)))
    assert counts == [(1, 0), (2, 0), (2, 0), (3, 0), (3, 0), (4, 1)]
    assert engine.stat().num_decoding == 2
    run(engine)
    assert short == alone
    assert long == long_alone


class Stores(Computes):
    """Offers each prompt longer than `SHORT` the next of its sources, if any is left."""

    def __init__(self, *sources: HeldSource) -> None:
        self.sources = list(sources)

    def plan(self, request: Request) -> Planned:
        tokens = request.prompt.token_ids
        if len(tokens) <= len(SHORT) or not self.sources:
            return plain(request)
        return Planned(Plan(tokens, prefix=self.sources.pop(0)))


def riders_of(
    tiny: LoadedModel, *sources: HeldSource
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Tokens of a short answer and of a long prompt's after each of four layers, and both answers."""
    limits = EngineLimits(KV_BYTES, max_batch_tokens=128, speculative_tokens=0)
    planner = Stores(*sources)
    engine = Engine(tiny, TorchAttention(), planner, limits, ManualClock(), threaded=False)
    _, short = ask(engine, "short", SHORT, 12)
    while not short:
        engine.step()
    _, long = ask(engine, "long", LONG, 4)
    counts = []
    for _ in range(2 * NUM_LAYERS):
        engine.step()
        counts.append((len(short), len(long)))
    run(engine)
    engine.check()
    engine.close()
    return counts, short, long


def test_a_prompt_with_a_small_stored_beginning_takes_riders(tiny: LoadedModel) -> None:
    """60 of 300 tokens are stored: they are placed first, and the first of three passes has 68 rows."""
    kv = passed(tiny, Plan(LONG)).captured
    _, short, long = riders_of(tiny)
    small = HeldSource(kv[:, :, :60])
    assert riders_of(tiny, small) == ([(1, 0), (2, 0), (2, 0), (3, 0)], short, long)
    assert small.closed
    large = HeldSource(kv[:, :, :61])  # for 239 rows: loaded in the pass, which nobody rides
    counts, *answers = riders_of(tiny, large)
    assert counts[2] == (1, 0)
    assert answers == [short, long]


def test_a_small_beginning_that_is_damaged_is_computed(tiny: LoadedModel) -> None:
    kv = passed(tiny, Plan(LONG)).captured
    bad = Failing(kv[:, :, :60])
    assert riders_of(tiny, bad)[1:] == riders_of(tiny)[1:]
    assert bad.closed


def test_who_rides_counts_as_decoding_and_comes_back_when_the_prompt_is_withdrawn(
    engine: Engine,
) -> None:
    _, alone = ask(engine, "short alone", SHORT, 6)
    run(engine)
    _, short = ask(engine, "short", SHORT, 6)
    while not short:
        engine.step()
    long, _ = ask(engine, "long", LONG, 4)
    engine.step()  # the first of two layers
    stat = engine.stat()
    assert (stat.num_prefilling, stat.num_decoding) == (1, 1)
    long.cancel()
    run(engine)
    assert short == alone


class Unsociable(TorchAttention):
    """Fails where a token is decoded beside others."""

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        if len(slices) > 1 and any(one.stop - one.start == 1 for one in slices):
            raise ValueError("a row too many")
        return super().bind(slices, cos, sin)


def test_a_pass_that_fails_beside_riders_ends_nobody(tiny: LoadedModel) -> None:
    """The fault may be a rider's: the prompt is computed alone, and the rider decodes alone."""
    limits = EngineLimits(KV_BYTES, max_batch_tokens=128, speculative_tokens=0)
    engine = Engine(tiny, Unsociable(), Computes(), limits, ManualClock(), threaded=False)
    answers = []
    for names in (("short alone",), ("long alone",), ("short", "long")):
        for name in names:
            tokens, size = (SHORT, 6) if "short" in name else (LONG, 4)
            answers.append(ask(engine, name, tokens, size)[1])
            engine.step()
            engine.step()
        run(engine)
    assert [len(ids) for ids in answers] == [6, 4, 6, 4]
    assert answers[2:] == answers[:2]
    engine.check()
    engine.close()


def test_what_is_stored_of_a_rider_and_its_prompt_has_the_bits_of_each_alone(
    tiny: LoadedModel,
) -> None:
    planner = Notes({})
    limits = EngineLimits(KV_BYTES, max_batch_tokens=128, speculative_tokens=0)
    engine = Engine(tiny, TorchAttention(), planner, limits, ManualClock(), threaded=False)
    for names in (("short alone",), ("long alone",), ("short", "long")):
        ids: list[int] = []
        for name in names:
            tokens, size = (SHORT, 12) if "short" in name else (LONG, 4)
            before = len(ids)
            _, own = ask(engine, name, tokens, size, Retention.ALL)
            while not own:
                engine.step()
            assert name != "long" or len(ids) == before + 3, "it rode in all three passes"
            ids = own
        run(engine)
    for name, size in (("short", 9 + 11), ("long", 300 + 3)):
        together, alone = planner.kv[name], planner.kv[f"{name} alone"]
        assert together.shape[2] == size
        assert torch.equal(together, alone)
    engine.close()


def test_a_pass_has_only_the_rows_that_a_stall_is_enough_for(tiny: LoadedModel) -> None:
    """At half a millisecond a row 60 ms are 120 rows, so one block of 128; alone it would be one pass."""
    clock = ManualClock()
    limits = EngineLimits(KV_BYTES, max_batch_tokens=2048, max_stall_ms=60.0)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, clock, threaded=False)

    def layer(seconds: float) -> None:
        engine.step()
        clock.advance(seconds)

    _, first = ask(engine, "first", LONG, 20)
    layer(0.15)
    layer(0.0)  # 300 rows in 150 ms
    assert len(first) == 1
    _, second = ask(engine, "second", LONG, 2)
    steps = 0
    while not second:
        layer(0.032)
        steps += 1
    assert steps == 3 * NUM_LAYERS
    assert len(first) == 4
    engine.close()


def test_a_prompts_last_rows_share_their_pass_with_the_next_ones_first_block(
    tiny: LoadedModel,
) -> None:
    """Two prompts of 192 rows at a block a pass: 128, 64 + 128 and 64 are three passes, where four were."""
    clock = ManualClock()
    limits = EngineLimits(KV_BYTES, max_batch_tokens=2048, max_stall_ms=60.0)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, clock, threaded=False)
    _, rider = ask(engine, "rider", LONG, 20)
    for seconds in (0.15, 0.0):  # half a millisecond a row: 120 rows a stall
        engine.step()
        clock.advance(seconds)
    asked = [ask(engine, str(seed), some_tokens(192, 200, seed), 2)[1] for seed in (2, 3)]
    counts = []
    for _ in range(3):
        for _ in range(NUM_LAYERS):
            engine.step()
            clock.advance(0.032)
        counts.append((len(rider), *map(len, asked)))
    assert counts == [(2, 0, 0), (3, 1, 0), (4, 2, 1)]
    engine.close()


def test_time_is_told_by_part() -> None:
    clock = ManualClock()
    times = StepTimes(clock)
    times.spent("wait")  # the first call begins the count
    clock.advance(2.0)
    times.spent("prefill")
    clock.advance(0.5)
    times.spent("decode")
    assert times.seconds() == {
        "wait": 0.0, "admit": 0.0, "prefill": 2.0, "decode": 0.5, "draw": 0.0, "retain": 0.0,
    }  # fmt: skip
