"""Calls of every controller over every link, by table: what viewers got in the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from kdn.errors import BadInput
from kdn.net.rtc.call import Call, CallOutcome, Link, mean_outcome, run_call
from kdn.net.rtc.choose import CODECS, controller
from kdn.net.rtc.policy import Policy
from kdn.net.rtc.tables import RateTable, read_tables

__all__ = [
    "CODECS",
    "HELD_OUT_CLIPS",
    "held_out_tables",
    "judged",
    "packaged_tables",
    "training_tables",
]

HELD_OUT_CLIPS = ("bikes", "generated-91")
"""Clips that neither a codec nor a policy was trained on."""

_TABLES = Path(__file__).parent / "weights" / "tables.npz"


@cache
def packaged_tables() -> tuple[RateTable, ...]:
    """The tables of the package."""
    return tuple(read_tables(_TABLES))


def training_tables(codec: str = "masked") -> list[RateTable]:
    """Tables of the clips that policies learn on."""
    return [t for t in _of(codec) if t.name not in HELD_OUT_CLIPS]


def held_out_tables(codec: str = "masked") -> list[RateTable]:
    """Tables of the clips that are kept for tests."""
    return [t for t in _of(codec) if t.name in HELD_OUT_CLIPS]


def _of(codec: str) -> list[RateTable]:
    found = [t for t in packaged_tables() if t.codec == codec]
    if not found:
        raise BadInput(f"no codec {codec!r}; there are {', '.join(CODECS)}")
    return found


def judged(
    name: str,
    tables: Sequence[RateTable],
    links: Sequence[Link],
    policies: dict[str, Policy],
    seconds: float = 30.0,
    tick: Callable[[], None] = lambda: None,
) -> CallOutcome:
    """The mean over all calls of a controller: each table over each link."""
    outcomes = []
    for link in links:
        for seed, table in enumerate(tables):
            call = Call(table, link, seconds, seed=seed + 1)
            outcomes.append(run_call(call, controller(name, link, policies, table.fps)))
            tick()
    return mean_outcome(outcomes)
