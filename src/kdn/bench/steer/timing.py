"""Time to the first token over stored KV: plain, a marked span, a look, two calls; and over no KV.

A look that finds no sentence clear enough does less than one that acts, so each has its own questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kdn import api
from kdn.bench.common.measure import interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.steer.items import INSTRUCTIONS, SteerItem
from kdn.bench.steer.lab import SteerLab
from kdn.bench.steer.rows import SteerRows
from kdn.core import Retention
from kdn.model import Message
from kdn.reuse.steer import LOOK_SHARE

__all__ = ["PLAIN", "timing_rounds"]

PLAIN = "plain"
_ROUNDS = 20
_OF_A_KIND = 2
"""Questions on which a look acts, and as many on which it does not."""
_SCANNED = 24
"""Contexts that are looked through for them."""
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
    if len(rows.rounds) >= wanted:
        return
    asked = _asked(service, [context[0] for context in items[:_SCANNED]])
    for item, _ in asked:
        _ttft(service, item)
    options.say(f"steer: {wanted - len(rows.rounds)} rounds of every way")
    for number in range(len(rows.rounds), wanted):
        item, look = asked[number % len(asked)]
        found = interleave(_ways(service, item, look), 1, first=number)
        rows.keep_round({way: round(seconds[0], 5) for way, seconds in found.items()})


def _asked(service: api.Kdn, items: Sequence[SteerItem]) -> list[tuple[SteerItem, str]]:
    """The first questions on which a look acts and the first on which it does not, in turn, with what
    their look is called."""
    lab = SteerLab(service)
    found: dict[str, list[SteerItem]] = {"look, acts": [], "look, does not act": []}
    for item in items:
        seen = lab.look(lab.context(item), lab.prompt(item))
        acts = seen is not None and seen.share >= LOOK_SHARE
        own = found["look, acts" if acts else "look, does not act"]
        if len(own) < _OF_A_KIND:
            own.append(item)
        if all(len(own) == _OF_A_KIND for own in found.values()):
            break
    return [
        (own[turn], look)
        for turn in range(_OF_A_KIND)
        for look, own in found.items()
        if turn < len(own)
    ]


def _ways(service: api.Kdn, item: SteerItem, look: str) -> Mapping[str, Callable[[int], float]]:
    """Each way to ask the item, by name; they return seconds to the first token."""
    document, start, stop = item.spans[0]
    marked = {"document": document, "start": start, "stop": stop, "weight": 3}

    def two_calls(_: int) -> float:
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
        return first.usage.total_ms / 1000 + _ttft(service, item, steer=[marked])

    return {
        PLAIN: lambda _: _ttft(service, item),
        "span": lambda _: _ttft(service, item, steer=[marked]),
        look: lambda _: _ttft(service, item, steer="look"),
        "two calls": two_calls,
        "nothing stored": lambda number: _ttft(service, item, salt=f"cold-{number}"),
    }


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
