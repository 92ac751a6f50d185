"""Penalties, the least number of tokens, and the prompt's own probabilities: each beside its plain twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.clock import ManualClock
from kdn.core import Finish, FinishReason, Request, Sampling, Token
from kdn.engine import Engine, EngineLimits, Sampler
from kdn.errors import BadInput
from kdn.model import LoadedModel, Tokenizer
from kdn.model.attention import AttentionSlice, BoundAttention, TorchAttention
from tests.engine.runs import load_tiny
from tests.engine.test_engine import Bench, NoReuse, finish, prompt_of
from tests.model.reference import forward

LOGITS = torch.tensor([2.0, 1.0, -1.0, 0.5, -2.0])


def reported(sampler: Sampler) -> dict[int, float]:
    return dict(sampler.draw(LOGITS).alternatives)


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    """Tokens of the prompt (1, 2) and then of the answer (0) are divided or multiplied."""
    transformers = pytest.importorskip("transformers")
    twin = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    sampling = Sampling(repetition_penalty=1.7, logprobs=5, raw_logits=True)
    sampler = Sampler(sampling, 0, prompt_ids=(1, 2))
    ids = [1, 2]
    for _ in range(3):
        drawn = sampler.draw(LOGITS)
        wanted = twin(torch.tensor([ids]), LOGITS[None].clone())[0]
        assert dict(drawn.alternatives) == pytest.approx(dict(enumerate(wanted.tolist())))
        ids.append(drawn.token_id)


def test_frequency_counts_and_presence_does_not() -> None:
    """Greedy draws 0 twice: 2.0, then 2.0 - 0.3 - 0.2; the third time it has lost 2 * 0.3 + 0.2."""
    sampling = Sampling(frequency_penalty=0.3, presence_penalty=0.2, logprobs=5, raw_logits=True)
    sampler = Sampler(sampling, 0, prompt_ids=(0, 1))
    found = [reported(sampler)[0] for _ in range(3)]
    assert found == pytest.approx([2.0, 1.5, 1.2])


@pytest.mark.parametrize("allowed", [(), (7, 900, 3)])
def test_many_biases_and_penalties_have_the_bits_of_one_token_after_the_other(
    allowed: tuple[int, ...],
) -> None:
    """1,000 logits; a bias for every third token and two that are cut, and 50 tokens of a prompt."""
    chance = torch.Generator().manual_seed(0)
    sizes = 100 * torch.rand(1000, generator=chance, dtype=torch.float64) - 50
    bias = {token: float(sizes[token]) for token in range(0, 1000, 3)}
    bias |= {5: -1e300, 6: 1e300}
    prompt = tuple(range(100, 150)) * 2
    repeated, said = (1.0, 0.0) if allowed else (1.3, 0.1)
    sampling = Sampling(
        max_tokens=1,
        logit_bias=bias,
        logprobs=1000,
        allowed=allowed,
        raw_logits=True,
        repetition_penalty=repeated,
        presence_penalty=said,
    )
    sampler, drawn = Sampler(sampling, 0, prompt_ids=prompt), list[int]()
    for _ in range(3):
        logits = torch.randn(len(allowed) or 1000, generator=chance)
        wanted = logits.clone()
        for token, wished in bias.items():
            if not allowed or token in allowed:
                wanted[allowed.index(token) if allowed else token] += min(max(wished, -1e30), 1e30)
        for token in sorted({*prompt, *drawn}) if repeated > 1 else ():
            wanted[token] = (
                wanted[token] / repeated if wanted[token] > 0 else wanted[token] * repeated
            )
        for token in drawn if said else ():
            wanted[token] -= said
        found = sampler.draw(logits)
        named = allowed or range(1000)
        assert dict(found.alternatives) == dict(zip(named, wanted.tolist(), strict=True))
        drawn = sorted({*drawn, found.token_id})


def test_no_end_is_drawn_too_soon() -> None:
    """Token 0, the likeliest, ends the answer: it is barred for two tokens, as transformers bars it."""
    transformers = pytest.importorskip("transformers")
    sampler = Sampler(Sampling(min_tokens=2, logprobs=5), 0, end_ids=(0,))
    drawn = [sampler.draw(LOGITS) for _ in range(3)]
    assert [one.token_id for one in drawn] == [1, 1, 0]
    assert 0 not in dict(drawn[0].alternatives)
    twin = transformers.MinNewTokensLengthLogitsProcessor(1, 2, 0, device="cpu")
    barred = twin(torch.tensor([[9, 1]]), LOGITS[None].clone())[0]
    assert torch.isneginf(barred).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_tokens": 9, "max_tokens": 3}, "lower the first"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be"),
        ({"allowed": (1,), "max_tokens": 1, "presence_penalty": 1}, "one token"),
        ({"allowed": (1,), "max_tokens": 1, "min_tokens": 1}, "without penalties, min_tokens"),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Sampling(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", max_position_embeddings=1024), model_cache)


@pytest.mark.parametrize("num_tokens", [5, 700])
def test_the_prompt_is_scored_as_the_dull_loop_scores_it(
    tiny: LoadedModel, num_tokens: int
) -> None:
    """700 tokens take three passes; what was stored of the prompt before does not matter."""
    tokens = tuple(7 * i % 250 for i in range(num_tokens))
    bench = Bench(tiny, EngineLimits(kv_bytes=32 << 20))
    asked = Sampling(max_tokens=1, ignore_eos=True, prompt_logprobs=2)
    stream = bench.submit("r", tokens, sampling=asked)
    bench.drain()
    prompt = finish(stream).prompt
    logprobs = torch.log_softmax(forward(tiny.decoder, tokens), dim=-1)
    assert [one.token_id for one in prompt] == list(tokens)
    assert prompt[0].logprob is None
    for position in range(1, num_tokens):
        wanted = float(logprobs[position - 1, tokens[position]])
        assert prompt[position].logprob == pytest.approx(wanted, abs=1e-4)
        best = prompt[position].alternatives[0].logprob
        assert best == pytest.approx(float(logprobs[position - 1].max()), abs=1e-4)


def test_company_does_not_change_scores_nor_the_other_way_round(tiny: LoadedModel) -> None:
    alone, both = Bench(tiny), Bench(tiny)
    asked = Sampling(max_tokens=1, ignore_eos=True, prompt_logprobs=0)
    found = []
    for bench in (alone, both):
        stream = bench.submit("s", tuple(range(40)), sampling=asked)
        if bench is both:
            bench.submit("other", tuple(range(60)), max_tokens=3)
        bench.drain()
        found.append(finish(stream).prompt)
    assert found[0] == found[1]


class Naming(Tokenizer):
    """Counts the tokens that it names."""

    num_named = 0

    def token_text(self, token_id: int) -> str:
        self.num_named += 1
        return super().token_text(token_id)


def test_a_scored_prompt_is_spelled_out_where_it_is_read(tiny: LoadedModel) -> None:
    """Each of 40 tokens but the first has two alternatives: 78 names at most, that no step waits for."""
    tokenizer = Naming(tiny.tokenizer.definition, eos_ids=())
    bench = Bench(replace(tiny, tokenizer=tokenizer))
    asked = Sampling(max_tokens=300, ignore_eos=True, prompt_logprobs=2)
    read, gone = (bench.submit(name, tuple(range(40)), sampling=asked) for name in "ab")
    for _ in range(4):
        bench.engine.step()
    gone.cancel()
    bench.drain()
    assert finish(gone).prompt == ()
    end = finish(read)
    assert tokenizer.num_named == 0
    named = {one.token_id: one.text for token in end.prompt for one in token.alternatives}
    assert tokenizer.num_named == len(named) <= 78
    assert named == {token: tiny.tokenizer.token_text(token) for token in named}


class Counting(TorchAttention):
    """Notes how many rows attend at a time: where all are scored, so many have logits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        self.rows.append(sum(one.stop - one.start for one in slices))
        return super().bind(slices, cos, sin)


def test_scored_prompts_share_the_logits_of_a_pass(tiny: LoadedModel) -> None:
    """256 rows have logits: two prompts of 300 are passes of 256, 44 + 128 and 172."""
    attention, streams = Counting(), []
    limits = EngineLimits(kv_bytes=32 << 20)
    engine = Engine(tiny, attention, NoReuse(), limits, ManualClock(), threaded=False)
    attention.rows.clear()  # the engine asks first whether bits hold
    for name in ("a", "b"):
        asked = Sampling(max_tokens=1, ignore_eos=True, prompt_logprobs=0)
        tokens = tuple(7 * i % 250 for i in range(300))
        streams.append(engine.submit(Request(name, prompt_of(tokens), asked)))
    while engine.step():
        pass
    assert attention.rows == [256, 44 + 128, 172]
    assert [len(finish(stream).prompt) for stream in streams] == [300, 300]
    engine.close()


def test_the_stop_string_is_part_of_the_text_where_that_is_asked_for(tiny: LoadedModel) -> None:
    bench = Bench(tiny)
    plain = bench.submit("p", tuple(range(65, 80)), max_tokens=30)
    bench.drain()
    text = "".join(one.text for one in plain if isinstance(one, Token))
    stop = next(letter for letter in text if letter.isascii() and letter.isprintable())
    for include in (False, True):
        asked = Sampling(max_tokens=30, ignore_eos=True, stop=(stop,), include_stop=include)
        stream = bench.submit(f"s{include}", tuple(range(65, 80)), sampling=asked)
        bench.drain()
        *tokens, last = stream
        assert isinstance(last, Finish)
        assert last.reason is FinishReason.STOP
        found = "".join(one.text for one in tokens if isinstance(one, Token))
        assert found == text[: text.index(stop)] + stop * include


def test_a_stop_token_and_special_tokens_show_where_that_is_asked_for(tiny: LoadedModel) -> None:
    """The end, token 256, is lifted above all others: with it as a stop token of one's own it shows."""
    bench = Bench(tiny)
    end = {256: 1e9}
    cases = [
        (Sampling(max_tokens=2, logit_bias=end), ""),
        (
            Sampling(max_tokens=2, logit_bias=end, stop_token_ids=(256,), include_stop=True),
            "<|end|>",
        ),
        (Sampling(max_tokens=2, logit_bias={257: 1e9}), ""),
        (Sampling(max_tokens=2, logit_bias={257: 1e9}, show_special=True), "<|turn|>" * 2),
    ]
    for number, (asked, wanted) in enumerate(cases):
        stream = bench.submit(f"r{number}", prompt_of((65, 66)).token_ids, sampling=asked)
        bench.drain()
        *tokens, last = stream
        assert "".join(one.text for one in tokens if isinstance(one, Token)) + last.tail == wanted  # type: ignore[union-attr]
