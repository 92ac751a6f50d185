"""Time to the first token over stored KV: plain, a marked span, a look, and two calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kdn import api
from kdn.bench.common.measure import Samples, interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.steer.items import INSTRUCTIONS, SteerItem
from kdn.core import Retention
from kdn.model import Message

__all__ = ["PLAIN", "ttft_samples"]

PLAIN = "plain"
_ROUNDS = 20
_COPIED = 32
"""Tokens of the first of two calls, which names a sentence."""


def ttft_samples(
    options: BenchOptions, service: api.Kdn, items: Sequence[Sequence[SteerItem]]
) -> Samples:
    """Seconds by way and round; a round is one question over a context that is stored."""
    rounds = options.pairs or (2 if options.quick else _ROUNDS)
    asked = [context[0] for context in items][:4]
    for item in asked:
        _ttft(service, item)
    turns = list(itertools.islice(itertools.cycle(asked), rounds))
    options.say(f"steer: {rounds} rounds of every way")

    def span(number: int) -> float:
        document, start, stop = turns[number].spans[0]
        marked = {"document": document, "start": start, "stop": stop, "weight": 3}
        return _ttft(service, turns[number], steer=[marked])

    def two_calls(number: int) -> float:
        item = turns[number]
        first = service.generate(
            [
                Message("system", INSTRUCTIONS[0]),
                Message("user", f"Copy the sentence: {item.question}"),
            ],
            list(item.documents),
            max_tokens=_COPIED,
            temperature=0,
            retention=Retention.SHARED,
        )
        return first.usage.total_ms / 1000 + span(number)

    return interleave(
        {
            PLAIN: lambda number: _ttft(service, turns[number]),
            "span": span,
            "look": lambda number: _ttft(service, turns[number], steer="look"),
            "two calls": two_calls,
        },
        rounds,
    )


def _ttft(service: api.Kdn, item: SteerItem, steer: api.Steering = ()) -> float:
    answer = service.generate(
        [Message("system", INSTRUCTIONS[0]), Message("user", item.question)],
        list(item.documents),
        max_tokens=2,
        temperature=0,
        retention=Retention.SHARED,
        steer=steer,
    )
    return answer.usage.ttft_ms / 1000
