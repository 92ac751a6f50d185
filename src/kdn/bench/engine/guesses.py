"""Decoding with and without guesses from what the prompt says, on prompts whose answers quote it."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from kdn import api
from kdn.bench.common.measure import decode_rate, interleave
from kdn.bench.common.result import BenchOptions, Row
from kdn.bench.engine.contestants import KdnContestant
from kdn.bench.engine.lineup import OURS, opened
from kdn.config import EngineConfig
from kdn.core import TokenIds
from kdn.corpus import corpus_files

__all__ = ["guessed_decoding"]

_QUESTION = "Repeat the document above word for word."
_NUM_TOKENS = 48
_NUM_DOCUMENTS = 3
_CHARACTERS = 3000
"""Of each document, before tokens are counted."""
_PLAIN = "without guesses"


def guessed_decoding(
    options: BenchOptions, scratch: Path, context: int, rounds: int, rest_s: float
) -> Row:
    """Tokens a second behind `context` tokens, and how many times as many guesses make of them."""
    usual = EngineConfig().speculative_tokens
    with (
        opened(options, scratch, name="guesses", speculative_tokens=usual) as guessing,
        opened(options, scratch, name="plain") as plain,
    ):
        ours = KdnContestant(guessing.engine, options.clock)
        other = KdnContestant(plain.engine, options.clock)
        rates: dict[str, list[float]] = {OURS: [], _PLAIN: []}
        for prompt in _prompts(guessing, context):
            sides = {
                OURS: partial(_token_s, ours, prompt),
                _PLAIN: partial(_token_s, other, prompt),
            }
            samples = interleave(sides, rounds, rest_s=rest_s)
            for name, seconds in samples.items():
                rates[name] += [1 / one for one in seconds]
    gains = [a / b for a, b in zip(rates[OURS], rates[_PLAIN], strict=True)]
    row: Row = {"measure": "decoding what the prompt says, tokens/s", "tokens": context, "batch": 1}
    row |= {name: statistics.median(found) for name, found in rates.items()}
    return row | {"speedup": statistics.median(gains)}


def _prompts(service: api.Kdn, context: int) -> list[TokenIds]:
    """The end of each prompt: the question stands last."""
    made = []
    for file in corpus_files()[:_NUM_DOCUMENTS]:
        text = file.read_text("utf-8")[:_CHARACTERS]
        asked = service.prompts.segments([{"role": "user", "content": f"{text}\n\n{_QUESTION}"}])
        made.append(asked.token_ids[-context:])
    return made


def _token_s(contestant: KdnContestant, prompt: TokenIds, _number: int) -> float:
    arrivals = contestant.arrivals_s([prompt], _NUM_TOKENS)
    assert arrivals is not None
    rate = decode_rate(arrivals)
    assert rate is not None, "one stream of several tokens is always side by side with itself"
    return 1 / rate
