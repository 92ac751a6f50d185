"""What the machine could do at best, from rates measured in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial

from kdn.bench.common.measure import Samples
from kdn.bench.common.result import Row
from kdn.bench.engine.exponentials import exponentials_per_s
from kdn.bench.engine.lineup import OURS, Lineup
from kdn.bench.engine.work import Rates, Work, decode_work, hit_work, prefill_work
from kdn.clock import Clock
from kdn.machine.facts import matmul_gflops, memory_gb_per_s

__all__ = [
    "CEILING",
    "COPY",
    "EXP",
    "HIT",
    "NEW_TOKENS",
    "RESIDENT",
    "decode_floor",
    "first_token_floors",
    "machine_sides",
]

NEW_TOKENS = 32
HIT, RESIDENT = "kdn hit", "kdn resident hit"
CEILING, COPY, EXP = "ceiling", "copy", "exponentials"


def machine_sides(lineup: Lineup, clock: Clock) -> dict[str, Callable[[int], float]]:
    """Seconds for 1e9 operations of a product, 1e9 bytes of a copy and 1e9 exponentials, by side."""

    def inverse(rate: Callable[[], float], unit: float, _number: int) -> float:
        return unit / rate()

    product = partial(matmul_gflops, lineup.device, lineup.dtype, clock, side=2048)
    return {
        CEILING: partial(inverse, product, 1.0),
        COPY: partial(inverse, partial(memory_gb_per_s, lineup.device, clock), 1.0),
        EXP: partial(inverse, partial(exponentials_per_s, lineup.device, clock), 1e9),
    }


def first_token_floors(lineup: Lineup, length: int, samples: Samples) -> list[Row]:
    """A row of floors and a row of shares, for a cold prompt and both kinds of hit."""
    given, stored = (lineup.config, lineup.weight_bytes, lineup.dtype), length - NEW_TOKENS
    works: Mapping[str, Work] = {
        OURS: prefill_work(*given, length),
        HIT: hit_work(*given, stored, NEW_TOKENS, resident=False),
        RESIDENT: hit_work(*given, stored, NEW_TOKENS, resident=True),
    }
    floors: Row = {"measure": "floor of a first token, ms", "tokens": length, "batch": 1}
    shares: Row = {"measure": "share of the floor", "tokens": length, "batch": 1}
    for name, work in works.items():
        floors[name] = 1000 * _floor_s(samples, work)
        shares[name] = _share(samples, name, work)
    return [floors, shares]


def decode_floor(lineup: Lineup, context: int, batch: int, samples: Samples) -> tuple[float, float]:
    """Tokens a second at the floor of a step, and the share of it that ours reached."""
    work = decode_work(lineup.config, lineup.weight_bytes, lineup.dtype, context, batch)
    return batch / _floor_s(samples, work), _share(samples, OURS, work, per=batch)


def _rates(samples: Samples) -> list[Rates]:
    """The machine's, round by round."""
    return [
        Rates(*each) for each in zip(samples[CEILING], samples[EXP], samples[COPY], strict=True)
    ]


def _floor_s(samples: Samples, work: Work) -> float:
    return statistics.median(work.floor_s(rates) for rates in _rates(samples))


def _share(samples: Samples, name: str, work: Work, per: int = 1) -> float:
    """What part of its time a side cannot do without; `per` samples make the work."""
    pairs = zip(samples[name], _rates(samples), strict=True)
    return statistics.median(work.floor_s(rates) / per / seconds for seconds, rates in pairs)
