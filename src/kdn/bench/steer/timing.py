"""Time to the first token over stored KV: plain, a marked span, looks, two calls; and over no KV."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kdn import api
from kdn.bench.common.measure import interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.steer.items import INSTRUCTIONS, SteerItem
from kdn.bench.steer.rows import SteerRows
from kdn.core import Retention
from kdn.model import Message

__all__ = ["PLAIN", "timing_rounds"]

PLAIN = "plain"
_ROUNDS = 20
_COPIED = 32
"""Tokens of the first of two calls, which names a sentence."""


def timing_rounds(
    options: BenchOptions,
    service: api.Kdn,
    items: Sequence[Sequence[SteerItem]],
    rows: SteerRows,
) -> None:
    """Rounds that are still wanted, each kept when it is done; one is a question over a stored context."""
    wanted = options.pairs or (2 if options.quick else _ROUNDS)
    asked = [context[0] for context in items][:4]
    if len(rows.rounds) >= wanted:
        return
    for item in asked:
        _ttft(service, item)
    options.say(f"steer: {wanted - len(rows.rounds)} rounds of every way")
    turns = list(itertools.islice(itertools.cycle(asked), wanted))

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

    ways = {
        PLAIN: lambda number: _ttft(service, turns[number]),
        "span": span,
        "look": lambda number: _ttft(service, turns[number], steer="look"),
        "look-always": lambda number: _ttft(service, turns[number], steer="look-always"),
        "two calls": two_calls,
        "nothing stored": lambda number: _ttft(service, turns[number], salt=f"cold-{number}"),
    }
    for number in range(len(rows.rounds), wanted):
        found = interleave(ways, 1, first=number)
        rows.keep_round({way: round(seconds[0], 5) for way, seconds in found.items()})


def _ttft(service: api.Kdn, item: SteerItem, steer: api.Steering = (), salt: str = "") -> float:
    answer = service.generate(
        [Message("system", INSTRUCTIONS[0]), Message("user", item.question)],
        list(item.documents),
        max_tokens=2,
        temperature=0,
        retention=Retention.NOTHING if salt else Retention.SHARED,
        steer=steer,
        salt=salt,
    )
    return answer.usage.ttft_ms / 1000
