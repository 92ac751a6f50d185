"""Does every constrained answer keep to its schema, and what do constraints cost a batch of eight?

500 random schemas are answered at temperature 1, and judged by jsonschema.  The schemas are bounded (texts,
numbers, lists and objects have limits), so that an answer ends by itself within `max_tokens`; one that is
cut off nevertheless is counted, and is not valid.  The cost is processor time: that of whole answers of equal
length, eight at a time, with and without a schema, in interleaved rounds; and that of the draws alone, as a
share of the decode step of eight that they belong to.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kdn import api
from kdn.bench.common.measure import Ratio, interleave, ratio
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.lineup import opened
from kdn.bench.structured.schemas import random_schema
from kdn.core import Constraint, Finish, FinishReason, Sampling, Token
from kdn.engine.sampling import Sampler
from kdn.errors import BadInput, MissingExtra

__all__ = ["run"]

_BATCH = 8
_JUDGED_AT_ONCE = 50
_ANSWER_TOKENS = 48
_MOST_TOKENS = 1500
_WAYS = (("drawn at temperature 1", 1.0), ("greedy", 0.0))
_LONG = Constraint.json_schema(
    {
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["name", "count"],
            "additionalProperties": False,
        },
    }
)
"""No answer of the measured length comes to its end."""


@dataclass(frozen=True)
class _Judged:
    """What became of one schema's answer."""

    compile_s: float
    reason: FinishReason
    is_valid: bool


def run(options: BenchOptions) -> Result:
    """Judge the answers, then time them."""
    if options.only not in (None, "answers", "cost"):
        raise BadInput(f"structured has no part {options.only!r}; there are answers and cost")
    asks_cost, asks_answers = options.only != "answers", options.only != "cost"
    torch.set_num_threads(options.threads)
    with opened(options) as kdn:
        judged = _judge(kdn, options) if asks_answers else []
        costs = _costs(kdn, options) if asks_cost else {}
        draws = _draw_costs(kdn, options) if asks_cost else {}
        name = kdn.name
    ended = [one for one in judged if one.reason is FinishReason.STOP]
    valid = sum(one.is_valid for one in ended)
    rows: list[Row] = []
    if judged:
        counted: Row = {"schemas": len(judged), "ended": len(ended), "valid": valid}
        rows.append({**counted, **_compile_ms(judged)})
    for way, one in costs.items():
        drawn = draws[way]
        rows.append(
            {
                "batch of 8": way,
                "processor time over unconstrained": str(one),
                "step ms": 1e3 * drawn.step_s,
                "free draws ms": 1e3 * drawn.free_s,
                "constrained draws ms": 1e3 * drawn.constrained_s,
            }
        )
    return Result(
        bench="structured",
        model=name,
        config=options.describe(),
        rows=rows,
        summary={
            "valid_share": valid / len(judged) if judged else None,
            "ended_share": len(ended) / len(judged) if judged else None,
            "overhead_sampled": costs["drawn at temperature 1"].median - 1 if costs else None,
            "overhead_greedy": costs["greedy"].median - 1 if costs else None,
            "draw_share_sampled": draws["drawn at temperature 1"].share if draws else None,
            "draw_share_greedy": draws["greedy"].share if draws else None,
        },
        notes=(
            f"Answers that {_MOST_TOKENS} tokens cut off are not ended, not JSON yet, and not valid.",
            "The share of the draws: what constraints add to eight draws, over the decode step of eight.",
            "A constrained draw sorts the allowed tokens only, an unconstrained one the whole vocabulary.",
            "Processor time counts all threads; other programs disturb it less than the clock on the wall.",
        ),
    )


def _costs(kdn: api.Kdn, options: BenchOptions) -> dict[str, Ratio]:
    rounds = options.pairs or (3 if options.quick else 15)
    return {name: _cost(kdn, rounds, warmth, options) for name, warmth in _WAYS}


@dataclass(frozen=True)
class _DrawCost:
    """Processor seconds of a decode step of eight, its draws among them, and of eight draws."""

    step_s: float
    free_s: float
    constrained_s: float

    @property
    def share(self) -> float:
        """What constraints add to the step."""
        return (self.constrained_s - self.free_s) / self.step_s


def _draw_costs(kdn: api.Kdn, options: BenchOptions) -> dict[str, _DrawCost]:
    """Medians over rounds, in which free and constrained draws take turns."""
    found, rounds = {}, options.pairs or (3 if options.quick else 9)
    for name, warmth in _WAYS:
        options.say(f"timing draws, {name}")
        steps, draws = list[float](), dict[bool, list[float]]({False: [], True: []})
        for number in range(rounds):
            spent = []
            for num_tokens in (2, _ANSWER_TOKENS):
                began = time.process_time()
                _answers(kdn, [None] * _BATCH, warmth, num_tokens, 1000 * number)
                spent.append(time.process_time() - began)
            steps.append((spent[1] - spent[0]) / (_ANSWER_TOKENS - 2))
            for constrained in draws:
                draws[constrained].append(_draws_s(kdn, warmth, number, constrained=constrained))
        found[name] = _DrawCost(
            statistics.median(steps),
            statistics.median(draws[False]),
            statistics.median(draws[True]),
        )
    return found


def _draws_s(kdn: api.Kdn, temperature: float, seed: int, *, constrained: bool) -> float:
    """Processor seconds of eight draws, the mean over an answer, from random logits."""
    sampling = Sampling(temperature=temperature, constraint=_LONG if constrained else None)
    grammar = kdn.model.grammars.compile(_LONG)
    samplers = [
        Sampler(sampling, seed + i, grammar.matcher() if constrained else None)
        for i in range(_BATCH)
    ]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(_BATCH, kdn.model.tokenizer.vocab_size, generator=generator)
    began = time.process_time()
    for _ in range(_ANSWER_TOKENS):
        for sampler, row in zip(samplers, logits, strict=True):
            sampler.draw(row)
    return (time.process_time() - began) / _ANSWER_TOKENS


def _compile_ms(judged: Sequence[_Judged]) -> Row:
    ordered = sorted(1e3 * one.compile_s for one in judged)
    return {
        "compile_p50_ms": round(statistics.median(ordered), 2),
        "compile_max_ms": round(ordered[-1], 2),
    }


def _judge(kdn: api.Kdn, options: BenchOptions) -> list[_Judged]:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingExtra("answers are judged by jsonschema: pip install jsonschema") from error
    rng = random.Random(options.seed)
    schemas = [random_schema(rng, bounded=True) for _ in range(20 if options.quick else 500)]
    found: list[_Judged] = []
    for start in range(0, len(schemas), _JUDGED_AT_ONCE):
        options.say(f"{start} of {len(schemas)} schemas")
        some = schemas[start : start + _JUDGED_AT_ONCE]
        found += _judged(kdn, some, start, jsonschema.validate)
    return found


def _judged(
    kdn: api.Kdn, schemas: Sequence[dict[str, Any]], first: int, validate: Any
) -> list[_Judged]:
    constraints = [Constraint.json_schema(schema) for schema in schemas]
    compile_s = []
    for constraint in constraints:
        began = time.perf_counter()
        kdn.model.grammars.compile(constraint)
        compile_s.append(time.perf_counter() - began)
    answers = _answers(kdn, constraints, 1.0, _MOST_TOKENS, first)
    return [
        _Judged(spent, finish.reason, _is_valid(text, schema, validate))
        for spent, (text, _, finish), schema in zip(compile_s, answers, schemas, strict=True)
    ]


def _is_valid(text: str, schema: dict[str, Any], validate: Any) -> bool:
    try:
        validate(json.loads(text), schema)
    except Exception:  # noqa: BLE001  jsonschema is not typed, and every way to fail counts
        return False
    return True


def _answers(
    kdn: api.Kdn,
    constraints: Sequence[Constraint | None],
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[tuple[str, int, Finish]]:
    """Texts with their numbers of tokens, all at one time."""
    streams = []
    for number, constraint in enumerate(constraints):
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed + number,
            constraint=constraint,
            ignore_eos=constraint is None,
        )
        asked = f"Write item {seed + number} of the list as JSON."
        request = kdn.prompts.request(asked, sampling=sampling)
        streams.append(kdn.submit(request))
    found = []
    for stream in streams:
        *tokens, finish = list(stream)
        assert isinstance(finish, Finish)
        texts = [token.text for token in tokens if isinstance(token, Token)]
        found.append(("".join(texts) + finish.tail, len(texts), finish))
    return found


def _cost(kdn: api.Kdn, rounds: int, temperature: float, options: BenchOptions) -> Ratio:
    """How many times the processor time constrained answers take, token for token."""
    options.say(f"timing {rounds} pairs at temperature {temperature:g}")

    def side(constraint: Constraint | None, number: int) -> float:
        began = time.process_time()
        wanted: list[Constraint | None] = [constraint] * _BATCH
        found = _answers(kdn, wanted, temperature, _ANSWER_TOKENS, 1000 * (number + 1))
        spent = time.process_time() - began
        assert all(num_tokens == _ANSWER_TOKENS for _, num_tokens, _ in found)
        return spent

    sides = {"free": partial(side, None), "constrained": partial(side, _LONG)}
    interleave(sides, 1)  # what is computed once is not counted
    found = ratio(interleave(sides, rounds, first=1), "free", "constrained")
    assert found is not None, "both sides ran"
    return found
