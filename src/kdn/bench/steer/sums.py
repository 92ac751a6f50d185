"""Judged items summed up: paired differences to the plain answer, with intervals over clusters."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdn.bench.common.result import Row

__all__ = ["JudgedItem", "arm_rows", "clustered", "steer_notes", "steer_summary"]

JudgedItem = dict[str, Any]
"""`name`, `cluster`, `tokens`, `chance` and `arms`: {arm: {"nll": ..., "kl": ..., ...}}."""
_DRAWS = 2000
_FEWEST_CLUSTERS = 5
"""Of fewer a bootstrap draws much the same again and again: no interval is told."""
_PLAIN = "plain"


def clustered(
    items: Sequence[JudgedItem], value: Callable[[JudgedItem], float | None], seed: int = 0
) -> tuple[float, float, float] | None:
    """The mean of `value` and its 95 % bootstrap interval, clusters drawn whole; None without any."""
    by_cluster: dict[str, list[float]] = {}
    for item in items:
        found = value(item)
        if found is not None:
            by_cluster.setdefault(f"{_set(item)} {item['cluster']}", []).append(found)
    if not by_cluster:
        return None
    sums = [(sum(own), len(own)) for own in by_cluster.values()]
    draw, means = random.Random(seed), []
    for _ in range(_DRAWS):
        drawn = draw.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return mean, means[int(0.025 * _DRAWS)], means[int(0.975 * _DRAWS) - 1]


def arm_rows(judged: Sequence[JudgedItem]) -> list[Row]:
    """A row for each arm of each set, and of all together."""
    sets = [("all", list(judged))] if judged else []
    sets += [
        (name, [one for one in judged if _set(one) == name])
        for name in dict.fromkeys(map(_set, judged))
    ]
    return [
        _row(part, arm, items)
        for part, items in sets
        for arm in dict.fromkeys(arm for one in items for arm in one["arms"])
    ]


def steer_summary(
    judged: Sequence[JudgedItem], costs: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Gains are how far an arm lowers the gold answer's NLL, in nats; above 0 is better."""

    def gain(arm: str, beside: str = _PLAIN) -> float | None:
        found = clustered(judged, _difference(beside, arm, "nll"))
        return None if found is None else found[0]

    f1 = clustered(judged, _difference("retrieved", _PLAIN, "f1"))
    harm = clustered(judged, _difference("look", _PLAIN, "unrelated"))
    span, two_calls = costs.get("span"), costs.get("two calls")
    return {
        "nll_gain": gain("published"),
        "nll_gain_random": gain("published", beside="published-random"),
        "f1_diff": None if f1 is None else f1[0],
        "nll_gain_look": gain("look"),
        "nll_gain_span": gain("retrieved"),
        "nll_gain_oracle": gain("oracle"),
        "harm_nll": None if harm is None else harm[0],
        "ttft_cost": None if span is None else span - 1,
        "ttft_speedup_query_dependent": two_calls / span if span and two_calls else None,
    }


def steer_notes(judged: Sequence[JudgedItem]) -> tuple[str, ...]:
    if not judged:
        return ()
    clusters = {f"{_set(one)} {one['cluster']}" for one in judged}
    said = (
        f"{len(judged)} items of {len(clusters)} articles or questions, whose intervals are 95 %"
        " bootstrap intervals over these clusters."
    )
    passes = (
        "`published` takes three passes over a text beforehand (two that score, one that is steered);"
        " all other arms take none."
    )
    return (said, passes)


def _row(part: str, arm: str, items: Sequence[JudgedItem]) -> Row:
    own = [one for one in items if arm in one["arms"]]
    row: Row = {"part": part, "arm": arm, "items": len(own)}
    row["gold NLL"] = statistics.mean(one["arms"][arm]["nll"] for one in own)
    if arm != _PLAIN:
        found = clustered(own, _difference(_PLAIN, arm, "nll"))
        if found is not None:
            row["gain"] = found[0]
            enough = len({one["cluster"] for one in own}) >= _FEWEST_CLUSTERS
            row["interval"] = f"{found[1]:+.3f} to {found[2]:+.3f}" if enough else None
    row["KL from plain"] = statistics.mean(one["arms"][arm]["kl"] for one in own)
    for key, title in (("overlap", "in the answer's sentence"), ("f1", "F1")):
        values = [one["arms"][arm][key] for one in own if key in one["arms"][arm]]
        row[title] = statistics.mean(values) if values else None
    row["by chance"] = statistics.mean(one["chance"] for one in own)
    harm = clustered(own, _difference(arm, _PLAIN, "unrelated"))
    row["unrelated NLL, change"] = None if harm is None else harm[0]
    return row


def _difference(first: str, second: str, key: str) -> Callable[[JudgedItem], float | None]:
    """`first` less `second`, of items that have both."""

    def of(item: JudgedItem) -> float | None:
        arms = item["arms"]
        a, b = arms.get(first, {}).get(key), arms.get(second, {}).get(key)
        return None if a is None or b is None else float(a - b)

    return of


def _set(item: JudgedItem) -> str:
    return str(item["name"]).partition("/")[0]
