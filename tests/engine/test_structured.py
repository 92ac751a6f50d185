"""Answers that keep to a constraint, among others in a batch that keep to none."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdn.bench.structured.schemas import random_schema
from kdn.clock import SystemClock
from kdn.core import (
    Constraint,
    Finish,
    FinishReason,
    Prompt,
    Request,
    Role,
    Sampling,
    Segment,
    Token,
)
from kdn.engine import Engine, EngineLimits, Sampler
from kdn.errors import BadInput
from kdn.model import LoadedModel, load_model
from kdn.model.attention import TorchAttention
from tests.engine.test_engine import NoReuse

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SHORT = {ord('"'): 4.0}
"""Strings end soon."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    """Random weights over bytes: at temperature 1 it says anything that it may."""
    folder = tiny_model(max_position_embeddings=4096)
    return load_model(folder, cache_dir=model_cache, dtype="float32", device="cpu")


@pytest.fixture
def engine(tiny: LoadedModel) -> Iterator[Engine]:
    limits = EngineLimits(kv_bytes=64 << 20)
    built = Engine(tiny, TorchAttention(), NoReuse(), limits, SystemClock(), seed=1, threaded=False)
    yield built
    built.check()


def asked(name: str, constraint: Constraint | None, **sampling: object) -> Request:
    prompt = Prompt((Segment(Role.QUESTION, tuple(range(65, 85))),))
    how = {"max_tokens": 1500, "temperature": 1.0, "seed": 7} | sampling
    return Request(name, prompt, Sampling(constraint=constraint, **how))  # type: ignore[arg-type]


def answers(engine: Engine, requests: list[Request]) -> list[tuple[str, list[Token], Finish]]:
    streams = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    found = []
    for stream in streams:
        *tokens, finish = list(stream)
        assert isinstance(finish, Finish)
        whole = [token for token in tokens if isinstance(token, Token)]
        found.append(("".join(one.text for one in whole) + finish.tail, whole, finish))
    return found


def test_generated_schemas_yield_valid_json_at_temperature_one(engine: Engine) -> None:
    """Each answer that is not cut off is JSON that its schema allows."""
    rng = random.Random(11)
    schemas = [random_schema(rng, depth=2) for _ in range(24)]
    requests = [
        asked(f"r{i}", Constraint.json_schema(schema), seed=i, logit_bias=SHORT)
        for i, schema in enumerate(schemas)
    ]
    ended = 0
    for schema, (text, _, finish) in zip(schemas, answers(engine, requests), strict=True):
        if finish.reason is FinishReason.STOP:
            ended += 1
            jsonschema.validate(json.loads(text), schema)
    assert ended >= 20


def test_answers_to_bounded_schemas_end_by_themselves(engine: Engine) -> None:
    """Random weights draw evenly and have no wish to end: only the schema's limits end them."""
    rng = random.Random(5)
    schemas = [random_schema(rng, depth=2, bounded=True) for _ in range(24)]
    requests = [
        asked(f"b{i}", Constraint.json_schema(schema), seed=i, max_tokens=3000)
        for i, schema in enumerate(schemas)
    ]
    for schema, (text, _, finish) in zip(schemas, answers(engine, requests), strict=True):
        assert finish.reason is FinishReason.STOP, (schema, text)
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        (Constraint.regex("[a-f]{3}-[0-9]+"), "[a-f]{3}-[0-9]+"),
        (Constraint.choice(["left", "right"]), "left|right"),
        (Constraint.grammar('start: "(" start ")" | "x"'), r"\(*x\)*"),
        (Constraint.json_object(), r"(?s)\{.*\}"),
    ],
)
def test_every_kind_is_kept_to_greedily_too(
    engine: Engine, constraint: Constraint, form: str
) -> None:
    for temperature in (0.0, 1.0):
        ((text, _, finish),) = answers(
            engine, [asked(f"t{temperature}", constraint, temperature=temperature, max_tokens=300)]
        )
        assert re.fullmatch(form, text) or finish.reason is FinishReason.LENGTH


def test_neighbours_keep_their_bits(engine: Engine) -> None:
    """Unconstrained requests draw the same tokens and log-probabilities beside constrained ones."""
    plain = [asked(f"p{i}", None, seed=i, max_tokens=40, logprobs=3) for i in range(3)]
    alone = [tokens for _, tokens, _ in answers(engine, plain)]
    bound = [
        asked(f"c{i}", Constraint.regex("[a-z ]+"), seed=i, max_tokens=25 + i) for i in range(3)
    ]
    mixed = [one for pair in zip(bound, plain, strict=True) for one in pair]
    assert [tokens for _, tokens, _ in answers(engine, mixed)[1::2]] == alone


def test_an_answer_ends_with_the_last_token_that_can_follow(engine: Engine) -> None:
    ((text, tokens, finish),) = answers(engine, [asked("r", Constraint.choice(["yes"]))])
    assert (text, len(tokens), finish.reason) == ("yes", 3, FinishReason.STOP)
    assert finish.usage.completion_tokens == 3


def test_an_answer_that_is_cut_off_says_so(engine: Engine) -> None:
    ((text, _, finish),) = answers(engine, [asked("r", Constraint.choice(["yes"]), max_tokens=2)])
    assert (text, finish.reason) == ("ye", FinishReason.LENGTH)


def test_a_stop_string_ends_a_constrained_answer_too(engine: Engine) -> None:
    ((text, _, finish),) = answers(engine, [asked("r", Constraint.choice(["a;b"]), stop=(";",))])
    assert (text, finish.reason, finish.stop) == ("a", FinishReason.STOP, ";")


def test_probabilities_are_shared_among_the_tokens_that_are_allowed(engine: Engine) -> None:
    """Where one token may follow it is certain; there are no alternatives that may not be drawn."""
    constraint = Constraint.choice(["ab", "cb"])
    ((_, (first, second), _),) = answers(engine, [asked("r", constraint, logprobs=5)])
    assert {one.text for one in first.alternatives} == {"a", "c"}
    assert second.logprob == 0.0
    assert [one.text for one in second.alternatives] == ["b"]


def test_a_bias_acts_among_the_allowed(engine: Engine) -> None:
    constraint = Constraint.choice(["left", "right"])
    for letter, word in (("l", "left"), ("r", "right")):
        ((text, _, _),) = answers(
            engine, [asked(letter, constraint, logit_bias={ord(letter): 90.0})]
        )
        assert text == word


def test_a_constraint_that_cannot_be_honoured_is_refused_before_anything_runs(
    engine: Engine,
) -> None:
    with pytest.raises(BadInput, match="uses not"):
        engine.submit(asked("r", Constraint.json_schema({"not": {}})))
    assert engine.is_idle()


def test_what_shares_a_text_with_the_end_is_drawn_only_where_the_answer_may_end(
    tiny: LoadedModel,
) -> None:
    """A logit that wants the end from the first token on does not get it before the answer is whole."""
    import torch

    logits = torch.zeros(tiny.decoder.config.vocab_size)
    logits[256] = 50.0
    matcher = tiny.grammars.compile(Constraint.regex("ab*")).matcher()
    sampler = Sampler(Sampling(constraint=Constraint.regex("ab*")), 0, matcher)
    first, second = sampler.draw(logits), sampler.draw(logits)
    assert tiny.tokenizer.token_text(first.token_id) == "a"
    assert (second.token_id, second.is_last) == (256, True)
