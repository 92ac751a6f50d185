"""Guards: a choice of a sentence that is acted on where it is clear, and else left alone.

Rows hold how clear each choice was, so a guard is judged without another run: where it acts the item is
the arm's own, and where not it is the plain one.  Thresholds are chosen on `fit` alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdn.bench.common.result import Row
from kdn.bench.steer.sums import PLAIN, JudgedItem, set_of
from kdn.reuse.steer import LOOK_SHARE

__all__ = ["GUARDS", "Guard", "chosen_guard", "guard_rows", "guarded"]

_STEPS = 20
"""Thresholds of a measure that are tried: as many quantiles of what was measured."""
_HARM = 0.005
"""Nats that a threshold may cost a set of `fit`: less than that is told from nothing by no interval here."""
_LOOK, _NEAREST = "look-always", "retrieved"
_MEASURES = {_LOOK: ("lead", "share", "votes"), _NEAREST: ("lead", "cosine")}
"""By arm, what tells how clear its choice is."""
_OTHER = {_LOOK: _NEAREST, _NEAREST: _LOOK}
"""Who else must name the sentence where two must agree."""
_AGREES = "agrees"


@dataclass(frozen=True)
class Guard:
    """Acts where the measure of an arm's choice reaches a threshold."""

    arm: str
    measure: str
    least: float
    name: str = ""
    """Of the arm with its guard."""

    def acts(self, item: JudgedItem) -> bool | None:
        """None where the item does not tell."""
        found = _measured(item, self.arm, self.measure)
        return None if found is None else found >= self.least


GUARDS = (
    Guard(_LOOK, "share", LOOK_SHARE, "look"),
    Guard(_NEAREST, "lead", 0.08, "retrieved-sure"),
)
"""`steer="look"` of kdn, and the like for the nearest sentence; of 20 steps of each measure on `fit`."""


def guarded(items: Sequence[JudgedItem], guards: Sequence[Guard] = GUARDS) -> list[JudgedItem]:
    """The items with an arm more for each guard, where they tell how clear the choice was."""
    found = []
    for item in items:
        arms = dict(item["arms"])
        for guard in guards:
            acts = guard.acts(item)
            if acts is not None:
                arms[guard.name] = arms[guard.arm] if acts else arms[PLAIN]
        found.append({**item, "arms": arms})
    return found


def chosen_guard(fit: Sequence[JudgedItem], arm: str, measure: str | None = None) -> Guard | None:
    """The threshold of a measure, or of any, that gains most over the sets of `fit`, each counting alike.

    It may cost none of them more than `_HARM`.  None where there is none, and without rows that tell.
    """
    asked = (one for one in _candidates(fit, arm) if measure in (None, one.measure))
    tried = [(guard, _gains(fit, guard)) for guard in asked]
    harmless = [(g, gains) for g, gains in tried if gains and min(gains.values()) >= -_HARM]
    if not harmless:
        return None
    return max(harmless, key=lambda one: statistics.mean(one[1].values()))[0]


def guard_rows(fit: Sequence[JudgedItem]) -> list[Row]:
    """The arm without a guard on `fit`, and with the threshold of each measure that would be chosen."""
    rows: list[Row] = []
    for arm, measures in _MEASURES.items():
        measured = [one for one in fit if "sure" in one["arms"].get(arm, {})]
        if not measured:
            continue
        rows.append(_row(measured, Guard(arm, measures[0], float("-inf"))))
        for measure in (*measures, _AGREES):
            guard = chosen_guard(measured, arm, measure)
            rows += [] if guard is None else [_row(measured, guard)]
    return rows


def _row(fit: Sequence[JudgedItem], guard: Guard) -> Row:
    acts = [guard.acts(one) for one in fit]
    row: Row = {"part": "guards on `fit`", "arm": guard.arm}
    is_open = guard.least == float("-inf")
    row["acts where"] = "always" if is_open else f"{guard.measure} >= {guard.least:.3g}"
    row["acts on"] = f"{sum(one is True for one in acts)} of {len(acts)}"
    row |= {f"gain, {name}": gain for name, gain in _gains(fit, guard).items()}
    row["mean of the sets"] = _mean_gain(fit, guard)
    return row


def _candidates(fit: Sequence[JudgedItem], arm: str) -> Iterator[Guard]:
    for measure in _MEASURES[arm]:
        values = sorted(v for one in fit if (v := _measured(one, arm, measure)) is not None)
        steps = {values[len(values) * step // _STEPS] for step in range(_STEPS)} if values else ()
        yield from (Guard(arm, measure, least) for least in sorted(steps))
    if any(_measured(one, arm, _AGREES) is not None for one in fit):
        yield Guard(arm, _AGREES, 1.0)


def _mean_gain(fit: Sequence[JudgedItem], guard: Guard) -> float:
    return statistics.mean(_gains(fit, guard).values())


def _gains(fit: Sequence[JudgedItem], guard: Guard) -> Mapping[str, float]:
    """The mean gain of each set."""
    total: dict[str, list[float]] = {}
    for one in fit:
        acts, arms = guard.acts(one), one["arms"]
        if acts is not None:
            gain = arms[PLAIN]["nll"] - arms[guard.arm]["nll"] if acts else 0.0
            total.setdefault(set_of(one), []).append(gain)
    return {name: statistics.mean(gains) for name, gains in total.items()}


def _measured(item: JudgedItem, arm: str, measure: str) -> float | None:
    arms = item["arms"]
    own = arms.get(arm, {})
    if measure == _AGREES:
        both = [arms.get(one, {}).get("chosen") for one in (arm, _OTHER[arm])]
        return None if None in both else float(both[0] == both[1])
    found = own.get("sure", {}).get(measure)
    return None if found is None else float(found)
