"""The step loop, stepped by hand: a tiny model, a clock that moves when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdn.clock import ManualClock, SystemClock
from kdn.core import (
    Finish,
    FinishReason,
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    Sampling,
    Segment,
    StreamEvent,
    Token,
    TokenIds,
)
from kdn.engine import Engine, EngineLimits, RunningStream, plain
from kdn.errors import BadInput, EngineFailed, PromptTooLong, UnknownModel
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.trace import Recorder
from tests.engine.runs import Failing, HeldSource, load_tiny, run, some_tokens
from tests.model.reference import forward

ROOMY = EngineLimits(kv_bytes=1 << 28)


class NoReuse:
    """The dull planner: computes everything, remembers what it was handed."""

    def __init__(self) -> None:
        self.kept: list[RetainedKV] = []

    def cached_tokens(self, request: Request) -> int:
        return 0

    def plan(self, request: Request) -> Planned:
        return plain(request)

    def retain(self, request: Request, kept: RetainedKV) -> None:
        self.kept.append(kept)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


class Bench:
    """An engine that is stepped by hand."""

    def __init__(
        self, model: LoadedModel, limits: EngineLimits = ROOMY, planner: NoReuse | None = None
    ) -> None:
        self.clock = ManualClock()
        self.trace = Recorder()
        self.planner = planner or NoReuse()
        self.engine = Engine(
            model,
            TorchAttention(),
            self.planner,
            limits,
            self.clock,
            trace=self.trace,
            threaded=False,
        )

    def submit(
        self, name: str, tokens: TokenIds, max_tokens: int = 5, **options: object
    ) -> RunningStream:
        sampling = options.pop("sampling", Sampling(max_tokens=max_tokens, ignore_eos=True))
        return self.engine.submit(Request(name, prompt_of(tokens), sampling, **options))  # type: ignore[arg-type]

    def drain(self) -> None:
        while self.engine.step():
            self.clock.advance(0.001)
            self.engine.check()
        self.engine.check()


def prompt_of(tokens: TokenIds, *shared: TokenIds) -> Prompt:
    documents = tuple(Segment(Role.DOCUMENT, one) for one in shared)
    return Prompt((*documents, Segment(Role.QUESTION, tokens)))


def ids(stream: RunningStream) -> list[int]:
    return [event.token_id for event in stream if isinstance(event, Token)]


def finish(events: Iterator[StreamEvent] | RunningStream) -> Finish:
    *_, last = events
    assert isinstance(last, Finish)
    return last


def greedy(model: LoadedModel, tokens: TokenIds, count: int) -> list[int]:
    """The dull twin: the whole sequence again for every token."""
    made: list[int] = []
    for _ in range(count):
        made.append(int(forward(model.decoder, (*tokens, *made))[-1].argmax()))
    return made


def test_greedy_tokens_are_those_of_the_dull_loop(tiny: LoadedModel) -> None:
    bench, tokens = Bench(tiny), some_tokens(30, 200)
    stream = bench.submit("a", tokens)
    bench.drain()
    assert ids(stream) == greedy(tiny, tokens, 5)


def test_company_changes_nobodys_tokens(tiny: LoadedModel) -> None:
    """Ten requests of unlike length, in passes of at most 128 rows, alone and together."""
    prompts = [some_tokens(10 + 23 * n, 200, seed=n) for n in range(10)]
    small = EngineLimits(kv_bytes=1 << 28, max_batch_tokens=128)
    bench = Bench(tiny, small)
    streams = [bench.submit(str(n), tokens) for n, tokens in enumerate(prompts)]
    bench.drain()
    together = [ids(stream) for stream in streams]
    for tokens, found in zip(prompts, together, strict=True):
        alone = Bench(tiny)
        stream = alone.submit("alone", tokens)
        alone.drain()
        assert ids(stream) == found


def test_a_long_prefill_does_not_freeze_a_running_stream(tiny: LoadedModel) -> None:
    """Each step takes 40 ms here, a stream may wait 60: after at most two layers it gets its token."""
    bench = Bench(tiny, EngineLimits(kv_bytes=1 << 28, max_stall_ms=60.0, max_batch_tokens=128))
    runs = bench.submit("runs", some_tokens(5, 200), max_tokens=30)
    while not bench.engine.stat().num_decoding:
        bench.engine.step()
    bench.submit("long", some_tokens(400, 200), max_tokens=1)
    arrivals: list[float] = []
    runs.on_event(
        lambda event: arrivals.append(bench.clock.now()) if isinstance(event, Token) else None
    )
    before = len(arrivals)
    while bench.engine.step():
        bench.clock.advance(0.040)
    waits = [b - a for a, b in zip(arrivals[before:], arrivals[before + 1 :], strict=False)]
    assert len(waits) > 10
    assert max(waits) <= 0.060 + 2 * 0.040 + 1e-9


def test_a_request_waits_for_room_and_then_runs(tiny: LoadedModel) -> None:
    """256 tokens of KV are 2 layers x 2 x 2 heads x 16 x 4 bytes x 256 = 131,072 bytes: room for one."""
    bench = Bench(tiny, EngineLimits(kv_bytes=140_000))
    first = bench.submit("first", some_tokens(10, 200), retention=Retention.NOTHING)
    second = bench.submit("second", some_tokens(11, 200), retention=Retention.NOTHING)
    bench.engine.step()
    assert (bench.engine.stat().num_waiting, bench.engine.stat().num_prefilling) == (1, 1)
    assert bench.engine.free_kv() == 140_000 - 131_072
    bench.drain()
    assert finish(first).reason is FinishReason.LENGTH
    assert finish(second).usage.queue_ms > 0
    assert bench.engine.free_kv() == 140_000


def test_of_many_that_come_at_once_only_those_near_their_turn_are_planned(
    tiny: LoadedModel,
) -> None:
    """Passes of 128 rows: two prompts of 100 tokens fill one, so the third is planned after them."""
    bench = Bench(tiny, EngineLimits(kv_bytes=1 << 28, max_batch_tokens=128))
    streams = [bench.submit(str(n), some_tokens(100, 200, seed=n)) for n in range(3)]
    bench.engine.step()
    assert (bench.engine.stat().num_prefilling, bench.engine.stat().num_waiting) == (2, 1)
    bench.drain()
    assert all(len(ids(stream)) == 5 for stream in streams)


def test_a_prompt_that_never_fits_is_refused_in_words(tiny: LoadedModel) -> None:
    bench = Bench(tiny, EngineLimits(kv_bytes=140_000))
    with pytest.raises(PromptTooLong, match="budget is 0 MiB"):
        bench.submit("a", some_tokens(400, 200))
    with pytest.raises(PromptTooLong, match="holds 512 tokens and the model's context 512"):
        bench.submit("a", some_tokens(512, 200))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": ()}, "empty"),
        ({"sampling": Sampling(logit_bias={100_000: 1.0})}, "token 100000"),
        (
            {"sampling": Sampling(min_tokens=1, stop_token_ids=(10**7,))},
            "stop_token_ids name token",
        ),
        ({"tokens": (1, 2, 10**6)}, "the prompt holds token 1000000"),
        ({"tokens": (1, -1)}, "the prompt holds token -1"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    options: dict[str, object], words: str, tiny: LoadedModel
) -> None:
    bench = Bench(tiny)
    with pytest.raises(BadInput, match=words):
        bench.submit("a", **({"tokens": (1, 2, 3)} | options))  # type: ignore[arg-type]
    with pytest.raises(UnknownModel, match="loaded adapters: none"):
        bench.submit("a", (1, 2), adapter="nobody")
    assert not bench.engine.step()


def test_a_group_runs_together(tiny: LoadedModel) -> None:
    bench = Bench(tiny)
    one = bench.submit("one", (5, 6, 7), group="g", group_size=2)
    assert not bench.engine.step(), "half a group waits"
    two = bench.submit("two", (8, 9), group="g", group_size=2)
    bench.drain()
    assert len(ids(one)) == len(ids(two)) == 5


def test_a_group_does_not_wait_for_a_member_that_was_withdrawn(tiny: LoadedModel) -> None:
    bench = Bench(tiny)
    one = bench.submit("one", (5, 6, 7), group="g", group_size=3)
    two = bench.submit("two", (8, 9), group="g", group_size=3)
    assert not bench.engine.step(), "the third is missing"
    two.cancel()
    assert not bench.engine.step(), "one of two that are left is missing"
    three = bench.submit("three", (5,), group="g", group_size=3)
    bench.drain()
    assert finish(two).reason is FinishReason.CANCELLED
    assert len(ids(one)) == len(ids(three)) == 5


class RefusesOne(NoReuse):
    def cached_tokens(self, request: Request) -> int:
        if request.id == "odd":
            raise OSError("the index is torn")
        return 0


def test_a_group_does_not_wait_for_a_member_that_failed(tiny: LoadedModel) -> None:
    bench = Bench(tiny, planner=RefusesOne())
    one = bench.submit("one", (5, 6, 7), group="g", group_size=2)
    odd = bench.submit("odd", (8, 9), group="g", group_size=2)
    bench.drain()
    with pytest.raises(EngineFailed, match="the index is torn"):
        list(odd)
    assert len(ids(one)) == 5


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_cancelled_request_gives_everything_back(steps: int, tiny: LoadedModel) -> None:
    bench = Bench(tiny)
    stream = bench.submit("a", some_tokens(40, 200), max_tokens=100)
    other = bench.submit("b", some_tokens(20, 200), max_tokens=3)
    for _ in range(steps):
        bench.engine.step()
    stream.cancel()
    bench.drain()
    assert finish(stream).reason is FinishReason.CANCELLED
    assert len(ids(other)) == 3
    assert bench.engine.free_kv() == ROOMY.kv_bytes


def test_generation_stops_at_a_stop_string_and_at_the_end_token(tiny: LoadedModel) -> None:
    """Letters only, so that text can be cut where we like."""
    tokens = some_tokens(30, 200)
    letters = dict.fromkeys(tiny.tokenizer.encode("abcdefghijklmnopqrstuvwxyz"), 100.0)
    bench = Bench(tiny)
    freely = bench.submit("free", tokens, sampling=Sampling(max_tokens=8, logit_bias=letters))
    bench.drain()
    made = ids(freely)
    text = tiny.tokenizer.decode(made)
    stop = text[3:5]
    by_text = bench.submit("text", tokens, sampling=Sampling(logit_bias=letters, stop=(stop,)))
    end = Sampling(logit_bias=letters, stop_token_ids=(made[3],))
    by_id = bench.submit("id", tokens, sampling=end)
    bench.drain()
    events = list(by_text)
    shown = "".join(event.text for event in events if isinstance(event, Token))
    assert shown == text[: text.index(stop)]
    assert finish(iter(events)).stop == stop
    assert finish(iter(events)).reason is FinishReason.STOP
    assert ids(by_id) == made[: made.index(made[3])]


def test_logprobs_name_the_alternatives(tiny: LoadedModel) -> None:
    bench, tokens = Bench(tiny), some_tokens(12, 200)
    stream = bench.submit("a", tokens, sampling=Sampling(max_tokens=1, logprobs=3, ignore_eos=True))
    bench.drain()
    token = next(iter(stream))
    assert isinstance(token, Token)
    expected = torch.log_softmax(forward(tiny.decoder, tokens)[-1], dim=-1)
    assert token.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [a.token_id for a in token.alternatives] == expected.topk(3).indices.tolist()


def test_what_is_kept_is_the_shared_part_then_the_rest(tiny: LoadedModel) -> None:
    document, question = some_tokens(50, 200), some_tokens(9, 200, seed=1)
    bench = Bench(tiny)
    request = Request(
        "a", prompt_of(question, document), Sampling(max_tokens=4), retention=Retention.ALL
    )
    stream = bench.engine.submit(request)
    bench.drain()
    prompt, answer = bench.planner.kept
    assert (prompt.start, len(prompt.token_ids), prompt.is_answer) == (0, 50, False)
    assert (answer.start, answer.is_answer) == (50, True)
    assert answer.token_ids == (*document, *question, *ids(stream)[:-1])
    whole = run(tiny, Plan(answer.token_ids)).captured
    both = torch.cat((prompt.kv, answer.kv), dim=2)
    assert (both - whole).abs().max() < 1e-4


def test_a_long_answer_is_handed_over_block_by_block_in_the_memory_reserved(
    tiny: LoadedModel,
) -> None:
    """A token's KV is 2 layers x 2 x 2 heads x 16 x 4 bytes = 512 bytes.  Ten tokens and an answer of 500
    have 512 columns reserved, and 256 for what is noted."""
    tokens = some_tokens(10, 200)
    bench = Bench(tiny)
    before = bench.engine.free_kv()
    stream = bench.submit("a", tokens, max_tokens=500, retention=Retention.ALL)
    bench.engine.step()
    assert before - bench.engine.free_kv() == (512 + 256) * 512
    bench.drain()
    answer = ids(stream)
    first, second = bench.planner.kept
    assert [(one.start, len(one.token_ids)) for one in (first, second)] == [(0, 256), (256, 509)]
    assert second.token_ids == (*tokens, *answer[:-1])
    assert all(one.kv.untyped_storage().nbytes() == 256 * 512 for one in (first, second))
    whole = run(tiny, Plan(second.token_ids)).captured
    assert (torch.cat((first.kv, second.kv), dim=2) - whole).abs().max() < 1e-4

    dull = Bench(tiny, EngineLimits(1 << 28, speculative_tokens=0))
    alone = dull.submit("a", tokens, max_tokens=500)
    dull.drain()
    assert ids(alone) == answer


@pytest.mark.parametrize(("retention", "pieces"), [(Retention.NOTHING, 0), (Retention.SHARED, 1)])
def test_no_more_is_kept_than_was_asked(
    retention: Retention, pieces: int, tiny: LoadedModel
) -> None:
    bench = Bench(tiny)
    bench.engine.submit(
        Request("a", prompt_of((5, 6), (7, 8, 9)), Sampling(max_tokens=2), retention=retention)
    )
    bench.drain()
    assert len(bench.planner.kept) == pieces


class Reusing(NoReuse):
    """Offers a damaged prefix first, then a whole one, then none."""

    def __init__(self, sources: list[HeldSource]) -> None:
        super().__init__()
        self.sources = list(sources)

    def plan(self, request: Request) -> Planned:
        if not self.sources:
            return plain(request)
        source = self.sources.pop(0)
        return Planned(Plan(request.prompt.token_ids, prefix=source), exact=source.num_tokens)


def test_a_damaged_block_is_planned_around(tiny: LoadedModel) -> None:
    tokens = some_tokens(80, 200)
    kv = run(tiny, Plan(tokens)).captured[:, :, :60]
    bad, good = Failing(kv.clone()), HeldSource(kv, name="good")
    bench = Bench(tiny, planner=Reusing([bad, good]))
    stream = bench.submit("a", tokens)
    bench.drain()
    events = list(stream)
    assert [e.token_id for e in events if isinstance(e, Token)] == greedy(tiny, tokens, 5)
    assert finish(iter(events)).usage.exact == 60
    assert bench.trace.count("engine.replan") == 1
    assert bad.closed
    assert good.closed
    assert bench.engine.free_kv() == ROOMY.kv_bytes


def test_sequences_with_one_prefix_share_one_copy(tiny: LoadedModel) -> None:
    """The second request comes while the first decodes; the prefix is loaded once."""
    shared = some_tokens(70, 200)
    kv = run(tiny, Plan(shared)).captured
    first, second = HeldSource(kv, name="same"), HeldSource(kv, name="same")
    bench = Bench(tiny, planner=Reusing([first, second]))
    one, two = (*shared, 5, 6), (*shared, 9)
    a = bench.submit("a", one, max_tokens=12)
    while not bench.engine.stat().num_decoding:
        bench.engine.step()
    b = bench.submit("b", two, max_tokens=6)
    bench.drain()
    assert (ids(a), ids(b)) == (greedy(tiny, one, 12), greedy(tiny, two, 6))
    assert first.started
    assert not second.started


def test_a_small_beginning_is_not_placed_where_another_of_the_pass_loads_it(
    tiny: LoadedModel,
) -> None:
    """60 stored tokens are most of a prompt of 70, which loads them layer by layer, and little of 320."""
    shared = some_tokens(60, 200)
    kv = run(tiny, Plan(shared)).captured
    sources = [HeldSource(kv, name="same"), HeldSource(kv, name="same")]
    bench = Bench(tiny, EngineLimits(1 << 28, max_batch_tokens=128), Reusing(list(sources)))
    one = (*shared, *some_tokens(10, 200, seed=1))
    two = (*shared, *some_tokens(260, 200, seed=2))
    a, b = bench.submit("a", one), bench.submit("b", two)
    bench.drain()
    assert (ids(a), ids(b)) == (greedy(tiny, one, 5), greedy(tiny, two, 5))
    assert bench.trace.count("engine.replan") == 0
    assert [bool(source.started) for source in sources] == [True, False]


class Breaking(NoReuse):
    def plan(self, request: Request) -> Planned:
        if request.id == "broken":
            source = HeldSource(torch.zeros(1, 2, 3, 2, 16))  # one layer of two: the pass must fail
            return Planned(Plan(request.prompt.token_ids, prefix=source))
        return plain(request)


def test_a_failing_pass_ends_its_request_and_nothing_else(tiny: LoadedModel) -> None:
    bench = Bench(tiny, planner=Breaking())
    well = bench.submit("well", (5, 6, 7))
    bench.engine.step()
    broken = bench.submit("broken", (5, 6, 7, 8))
    bench.drain()
    with pytest.raises(EngineFailed, match="broken failed"):
        list(broken)
    assert len(ids(well)) == 5
    assert bench.engine.free_kv() == ROOMY.kv_bytes


class Gated(NoReuse):
    """Plans nothing while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def plan(self, request: Request) -> Planned:
        assert self.gate.wait(60)
        return super().plan(request)


def test_threads_may_submit_and_close_ends_what_runs(tiny: LoadedModel) -> None:
    planner = Gated()
    engine = Engine(tiny, TorchAttention(), planner, ROOMY, SystemClock())
    prompts = [some_tokens(20 + n, 200, seed=n) for n in range(8)]
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        request = Request(
            str(number), prompt_of(prompts[number]), Sampling(max_tokens=6, ignore_eos=True)
        )
        found[number] = ids(engine.submit(request))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: greedy(tiny, prompts[n], 6) for n in range(8)}
    planner.gate.clear()
    endless = engine.submit(
        Request("endless", prompt_of((5, 6)), Sampling(max_tokens=400, ignore_eos=True))
    )
    begun, pulse, told = threading.Event(), threading.Event(), list[object]()

    def hold(event: object) -> None:
        told.append(event)
        begun.set()
        while engine.is_running:
            pulse.wait(0.001)

    endless.on_event(hold)
    planner.gate.set()
    assert begun.wait(60)
    engine.close()
    engine.close()
    (failure,) = [one for one in told if isinstance(one, EngineFailed)]
    assert "closed" in str(failure)
    with pytest.raises(EngineFailed, match="closed"):
        engine.submit(Request("late", prompt_of((5, 6))))
