"""One-token prompts: equal to a plain forward, whatever is reused and kept, in a known memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdn.clock import ManualClock
from kdn.core import (
    Finish,
    LayerKV,
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    Sampling,
    Segment,
    StoredRun,
    StreamEvent,
    Token,
    TokenIds,
)
from kdn.engine import (
    Engine,
    EngineLimits,
    JobMemory,
    Pass,
    SequenceKV,
    SequenceSlice,
    SuffixKV,
    measured_memory,
)
from kdn.errors import BadInput, PromptTooLong
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.model.kernels import KernelAttention, Kernels
from tests.engine.runs import HeldSource, Watcher, load_tiny, run, shape_of, some_tokens
from tests.model.reference import forward

TOKENS = some_tokens(300, 200)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], model_cache: Path
) -> LoadedModel:
    return load_tiny(tiny_model(request.param, num_hidden_layers=4), model_cache)


class Shelf:
    """A planner that offers `stored` tokens of KV and remembers what it is handed."""

    def __init__(self, kv: torch.Tensor | None = None) -> None:
        self.kv = kv
        self.kept: list[RetainedKV] = []

    def cached_tokens(self, request: Request) -> int:
        return 0 if self.kv is None else self.kv.shape[2]

    def plan(self, request: Request) -> Planned:
        tokens = request.prompt.token_ids
        if self.kv is None:
            return Planned(Plan(tokens))
        return Planned(Plan(tokens, prefix=HeldSource(self.kv)), exact=self.kv.shape[2])

    def retain(self, request: Request, kept: RetainedKV) -> None:
        self.kept.append(replace(kept, kv=kept.kv.clone()))


def ask(
    model: LoadedModel,
    shelf: Shelf,
    limits: EngineLimits,
    request: Request,
) -> list[StreamEvent]:
    """One request through an engine stepped by hand, with its books audited at the end."""
    attention = TorchAttention()
    engine = Engine(model, attention, shelf, limits, ManualClock(), threaded=False)
    stream = engine.submit(request)
    while engine.step():
        pass
    engine.check()
    events = list(stream)
    engine.close()
    assert engine.free_kv() == limits.kv_bytes, "everything is given back"
    return events


def question(
    tokens: TokenIds = TOKENS,
    allowed: tuple[int, ...] = (7, 99, 3),
    retention: Retention = Retention.NOTHING,
    cut: int = 290,
) -> Request:
    prompt = Prompt((Segment(Role.DOCUMENT, tokens[:cut]), Segment(Role.QUESTION, tokens[cut:])))
    sampling = Sampling(max_tokens=1, ignore_eos=True, allowed=allowed, logprobs=len(allowed))
    return Request("one", prompt, sampling, retention=retention)


def probabilities(events: list[StreamEvent]) -> dict[int, float]:
    token, finish = events
    assert isinstance(token, Token)
    assert isinstance(finish, Finish)
    return {other.token_id: math.exp(other.logprob) for other in token.alternatives}


@pytest.mark.parametrize("num_stored", [0, 128, 200, 299])
@pytest.mark.parametrize("retention", list(Retention))
def test_probabilities_are_those_of_a_plain_forward(
    tiny: LoadedModel, num_stored: int, retention: Retention
) -> None:
    """With no, some and all but the last token of the prompt stored; nothing, some, all kept."""
    logits = forward(tiny.decoder, TOKENS)[-1, [7, 99, 3]]
    expected = torch.softmax(logits, dim=-1).tolist()
    whole = run(tiny, Plan(TOKENS)).captured
    shelf = Shelf(whole[:, :, :num_stored] if num_stored else None)
    limits = EngineLimits(kv_bytes=1 << 28, row_chunk=64)
    found = probabilities(ask(tiny, shelf, limits, question(retention=retention)))
    assert [found[t] for t in (7, 99, 3)] == pytest.approx(expected, abs=1e-5)
    wanted = {Retention.NOTHING: 0, Retention.SHARED: 290, Retention.ALL: 300}[retention]
    kept = [(k.start, len(k.token_ids)) for k in shelf.kept if k.kv.shape[2]]
    assert sum(stop - start for start, stop in kept) == max(wanted - num_stored, 0)
    for part in shelf.kept:
        there = whole[:, :, part.start : len(part.token_ids)]
        assert (part.kv - there).abs().max() < 1e-4, "what is kept is what a plain pass computes"


@pytest.mark.parametrize("num_prefix", [0, 130, 299])
@pytest.mark.parametrize("row_chunk", [1, 64, 1000])
def test_hybrid_logits_are_plain_logits_within_1e_4(
    tiny: LoadedModel, num_prefix: int, row_chunk: int
) -> None:
    whole = run(tiny, Plan(TOKENS))
    source = HeldSource(whole.captured[:, :, :num_prefix]) if num_prefix else None
    shape, dtype = shape_of(tiny), tiny.decoder.dtype
    plan = Plan(TOKENS, prefix=source, row_chunk=row_chunk, one_layer=True)
    suffix = SuffixKV(shape, dtype, "cpu", 300 - num_prefix, one_layer=True)
    plain = run(tiny, plan)
    if num_prefix == 0:
        step = Pass(
            tiny.decoder,
            TorchAttention(),
            [SequenceSlice.prefill(plan, SequenceKV(suffix), 0, 300)],
        )
        with torch.inference_mode():
            while not step.advance():
                pass
            assert (step.logits()[0] - whole.logits).abs().max() < 1e-4
    assert (plain.logits - whole.logits).abs().max() < 1e-4


def test_the_compiled_attention_gives_the_same_bits_from_one_layer_of_memory(
    tiny_model: Callable[..., Path], model_cache: Path, kernels: Kernels
) -> None:
    folder = tiny_model("llama", hidden_size=256, head_dim=64, num_hidden_layers=4)
    model = load_tiny(folder, model_cache, "bfloat16", kernels)
    plan = Plan(TOKENS, row_chunk=128, one_layer=True)
    found = []
    for one_layer in (False, True):
        suffix = SuffixKV(shape_of(model), torch.bfloat16, "cpu", 300, one_layer=one_layer)
        part = SequenceSlice.prefill(plan, SequenceKV(suffix), 0, 300)
        with torch.inference_mode():
            step = Pass(model.decoder, KernelAttention(kernels), [part])
            while not step.advance():
                pass
            found.append(step.logits()[0])
    assert torch.equal(*found)


def test_the_leading_part_is_kept_when_memory_is_short(tiny: LoadedModel) -> None:
    """The pass itself fits, with room for 512 of the 600 tokens that others could use."""
    tokens = some_tokens(900, 200)
    shape = shape_of(tiny)
    memory = Engine(
        tiny, TorchAttention(), Shelf(), EngineLimits(1 << 28, row_chunk=64), ManualClock(),
        threaded=False,
    ).memory  # fmt: skip
    limits = EngineLimits(memory.needed(900) + 520 * shape.token_bytes, row_chunk=64)
    shelf = Shelf()
    request = question(tokens[:500], retention=Retention.SHARED, cut=490)
    ask(tiny, shelf, limits, request)
    assert [len(part.token_ids) for part in shelf.kept] == [490], "it all fits"
    limits = EngineLimits(memory.needed(500) + 300 * shape.token_bytes, row_chunk=64)
    shelf = Shelf()
    ask(tiny, shelf, limits, request)
    assert [len(part.token_ids) for part in shelf.kept] == [256], "whole extents from the front"


def test_what_cannot_fit_is_refused_with_the_number_that_would(tiny: LoadedModel) -> None:
    limits = EngineLimits(kv_bytes=600_000, row_chunk=16)
    engine = Engine(tiny, TorchAttention(), Shelf(), limits, ManualClock(), threaded=False)
    most = engine.most_tokens()
    assert 0 < most < 512
    engine.submit(question(some_tokens(most, 200), cut=most - 5))
    with pytest.raises(PromptTooLong, match=f"which fits {most} tokens"):
        engine.submit(question(some_tokens(most + 1, 200), cut=most - 5))
    while engine.step():
        pass
    engine.close()


def test_memory_is_a_line_through_two_measured_peaks() -> None:
    """1,000 bytes and 10 a row, measured at whole extents."""
    found = measured_memory(lambda rows: 1000 + 10 * rows, 256, 1024)
    assert found == JobMemory(token_bytes=10.0, fixed_bytes=1000.0)
    assert found.needed(300) == 1000 + 10 * 512
    assert found.largest(1000 + 10 * 700) == 512
    assert found.largest(999) == 0
    with pytest.raises(BadInput, match="ascending"):
        measured_memory(lambda rows: rows, 512, 256)


def test_jobs_with_different_choices_run_in_one_pass(tiny: LoadedModel) -> None:
    limits = EngineLimits(kv_bytes=1 << 28)
    engine = Engine(tiny, TorchAttention(), Shelf(), limits, ManualClock(), threaded=False)
    short = TOKENS[:40]
    streams = [
        engine.submit(replace(question(short, allowed, cut=35), id=str(allowed)))
        for allowed in ((5, 6), (6, 5), (9,))
    ]
    steps = 0
    while engine.step():
        steps += 1
    engine.close()
    assert steps == tiny.decoder.config.num_layers, "one pass for all three"
    first, second, third = (probabilities(list(stream)) for stream in streams)
    assert first == pytest.approx(second)
    assert third == {9: pytest.approx(1.0)}


def plans(kv: torch.Tensor) -> dict[str, Plan]:
    """Ways to plan a prompt that are not one row after the other, all with the same answer."""
    return {
        "observed": Plan(TOKENS, observers=(Watcher(),)),
        "stored": Plan(TOKENS, stored=(StoredRun(0, HeldSource(kv[:, :, :200])),)),
        "probed": Plan(TOKENS, logits=(), then=lambda: Plan(TOKENS)),
    }


@pytest.mark.parametrize("way", ["observed", "stored", "probed"])
def test_a_restriction_holds_however_a_prompt_is_planned(tiny: LoadedModel, way: str) -> None:
    """Among 7, 99 and 3, whatever else is likely."""

    class Planning(Shelf):
        def plan(self, request: Request) -> Planned:
            return Planned(made)

    ran = run(tiny, Plan(TOKENS))
    made = plans(ran.captured)[way]
    expected = torch.softmax(ran.logits[-1, [7, 99, 3]], dim=-1).tolist()
    found = probabilities(ask(tiny, Planning(), EngineLimits(1 << 28), question()))
    assert [found[token] for token in (7, 99, 3)] == pytest.approx(expected, abs=1e-5)


def test_impossible_restrictions_are_refused(tiny: LoadedModel) -> None:
    engine = Engine(
        tiny, TorchAttention(), Shelf(), EngineLimits(1 << 28), ManualClock(), threaded=False
    )
    for sampling, why in (
        (Sampling(max_tokens=2, allowed=(1,)), "set max_tokens to 1"),
        (Sampling(max_tokens=1, allowed=(1, 1)), "twice"),
        (Sampling(max_tokens=1, allowed=(10**6,)), "vocabulary does not have"),
    ):
        with pytest.raises(BadInput, match=why):
            engine.submit(replace(question(), sampling=sampling))
    engine.close()


def test_a_bias_counts_among_the_allowed(tiny: LoadedModel) -> None:
    request = question()
    sampling = replace(request.sampling, logit_bias={99: 50.0, 4: 100.0})
    events = ask(tiny, Shelf(), EngineLimits(1 << 28), replace(request, sampling=sampling))
    assert isinstance(events[0], Token)
    assert events[0].token_id == 99


class NamedSource(HeldSource):
    """A source that counts how often each layer is asked for."""

    taken = 0

    def take(self, layer: int) -> tuple[LayerKV, ...]:
        NamedSource.taken += 1
        return super().take(layer)


class SharingShelf(Shelf):
    """Everybody's prefix has the same name, as with a store."""

    def plan(self, request: Request) -> Planned:
        assert self.kv is not None
        source = NamedSource(self.kv)
        return Planned(Plan(request.prompt.token_ids, prefix=source), exact=self.kv.shape[2])


def test_a_prefix_that_a_pass_shares_is_brought_in_once(tiny: LoadedModel) -> None:
    """Three questions behind 200 stored tokens: each of 4 layers comes once, and the answers are
    those of one question at a time."""
    whole = run(tiny, Plan(TOKENS))
    shelf = SharingShelf(whole.captured[:, :, :200])
    asked = [question((*TOKENS[:280], *some_tokens(10, 200, n)), cut=200) for n in range(3)]
    alone = [probabilities(ask(tiny, shelf, EngineLimits(1 << 24), one)) for one in asked]
    NamedSource.taken = 0
    limits = EngineLimits(1 << 24, pack_tokens=1000)
    engine = Engine(tiny, TorchAttention(), shelf, limits, ManualClock(), threaded=False)
    streams = [engine.submit(replace(one, id=str(n))) for n, one in enumerate(asked)]
    while engine.step():
        pass
    engine.check()
    assert NamedSource.taken == 4
    for stream, wanted in zip(streams, alone, strict=True):
        assert probabilities(list(stream)) == pytest.approx(wanted, abs=1e-5)
    engine.close()
    assert engine.free_kv() == limits.kv_bytes


def test_a_shared_prefix_is_filled_by_whoever_is_left(tiny: LoadedModel) -> None:
    """The only one in the pass is cancelled half way; the next in line begins at the first layer."""
    whole = run(tiny, Plan(TOKENS))
    shelf = SharingShelf(whole.captured[:, :, :200])
    limits = EngineLimits(1 << 24, max_batch_tokens=128, row_chunk=512)
    engine = Engine(tiny, TorchAttention(), shelf, limits, ManualClock(), threaded=False)
    first = engine.submit(replace(question(cut=200), id="first"))
    second = engine.submit(replace(question(cut=200), id="second"))
    engine.step()
    first.cancel()
    while engine.step():
        pass
    alone = probabilities(ask(tiny, shelf, EngineLimits(1 << 24), question(cut=200)))
    assert probabilities(list(second)) == pytest.approx(alone, abs=1e-5)
    engine.close()
    assert engine.free_kv() == limits.kv_bytes


def test_an_answer_does_not_read_a_prefix_that_a_ranked_candidate_holds_one_layer_of(
    tiny: LoadedModel,
) -> None:
    """A candidate and a chat begin with one document: only the candidate's copy forgets its layers."""
    kv = run(tiny, Plan(TOKENS)).captured[:, :, :290]
    candidate = replace(question(), id="candidate", single_use=True)
    chat = replace(question(), id="later", sampling=Sampling(max_tokens=6, ignore_eos=True))

    def told(*requests: Request) -> list[int]:
        engine = Engine(
            tiny, TorchAttention(), Shelf(kv), EngineLimits(1 << 28), ManualClock(), threaded=False
        )
        streams = [engine.submit(one) for one in requests]
        while engine.step():
            engine.check()
        engine.close()
        return [event.token_id for event in streams[-1] if isinstance(event, Token)]

    alone = told(chat)
    assert len(set(alone)) > 1
    assert told(candidate, chat) == alone
