"""Judged items summed up: paired differences to the plain answer, with intervals over clusters."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdn.bench.common.result import Row

__all__ = [
    "FEWEST_CLUSTERS",
    "PLAIN",
    "TWINS",
    "JudgedItem",
    "arm_rows",
    "chosen_selection",
    "clustered",
    "gain_of",
    "num_clusters",
    "passes_rows",
    "reuses_to_pay",
    "set_of",
    "slower",
    "steer_summary",
    "time_rows",
]

JudgedItem = dict[str, Any]
"""`name`, `cluster`, `tokens`, `chance` and `arms`: {arm: {"nll": ..., "kl": ..., ...}}."""
_DRAWS = 2000
FEWEST_CLUSTERS = 5
"""Of fewer a bootstrap draws much the same again and again: no interval is told."""
PLAIN = "plain"
TWINS = {
    "published": "published-random",
    "published-literal": "published-literal-random",
    "published-union": "published-union-random",
    "published-one-pass": "published-one-pass-random",
    "self-asked": "self-asked-random",
    "passage-twice": "passage-twice-random",
    "notes": "notes-random",
    "key-norm": "key-norm-random",
    "key-directions": "key-directions-random",
    "retrieval-heads": "retrieval-heads-random",
}
"""Every selection that needs no question, and what it must beat: as large, and meaning nothing."""


def clustered(
    items: Sequence[JudgedItem], value: Callable[[JudgedItem], float | None], seed: int = 0
) -> tuple[float, float, float] | None:
    """The mean of `value` and its 95 % bootstrap interval, clusters drawn whole; None without any."""
    by_cluster: dict[str, list[float]] = {}
    for item in items:
        found = value(item)
        if found is not None:
            by_cluster.setdefault(f"{set_of(item)} {item['cluster']}", []).append(found)
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
        (name, [one for one in judged if set_of(one) == name])
        for name in dict.fromkeys(map(set_of, judged))
    ]
    return [
        _row(part, arm, items)
        for part, items in sets
        for arm in dict.fromkeys(arm for one in items for arm in one["arms"])
    ]


def gain_of(
    judged: Sequence[JudgedItem], arm: str, beside: str = PLAIN, key: str = "nll"
) -> tuple[float, float, float] | None:
    """How far an arm lowers it, with an interval; above 0 is better. None where no item has both."""
    return clustered(judged, _difference(beside, arm, key))


def num_clusters(judged: Sequence[JudgedItem], arm: str) -> int:
    """Articles or questions that the arm was judged on."""
    return len({(set_of(one), one["cluster"]) for one in judged if arm in one["arms"]})


def chosen_selection(fit: Sequence[JudgedItem]) -> str:
    """The selection without a question that beats its random twin by most on the half `fit`; the
    published one where none was judged there."""
    gains = {name: gain_of(fit, name, beside=twin) for name, twin in TWINS.items()}
    found = {name: gain[0] for name, gain in gains.items() if gain is not None}
    return max(found, key=lambda name: found[name], default="published")


def steer_summary(
    judged: Sequence[JudgedItem], fit: Sequence[JudgedItem], rounds: Sequence[Mapping[str, float]]
) -> dict[str, float | None]:
    """Gains are how far an arm lowers the gold answer's NLL on the half that is judged, in nats."""
    best = chosen_selection(fit)

    def mean(arm: str, beside: str = PLAIN, key: str = "nll") -> float | None:
        found = gain_of(judged, arm, beside, key)
        return None if found is None else found[0]

    f1, harm = mean(PLAIN, "retrieved", "f1"), mean(PLAIN, "look", "unrelated")
    span, two_calls = slower(rounds, "span"), slower(rounds, "two calls", beside="span")
    return {
        "nll_gain": mean(best),
        "nll_gain_random": mean(best, beside=TWINS[best]),
        "f1_diff": f1,
        "nll_gain_look": mean("look"),
        "nll_gain_span": mean("retrieved"),
        "nll_gain_oracle": mean("oracle"),
        "harm_nll": harm,
        "ttft_cost": None if span is None else span[0] - 1,
        "ttft_speedup_query_dependent": None if two_calls is None else two_calls[0],
    }


def slower(
    rounds: Sequence[Mapping[str, float]], way: str, beside: str = PLAIN
) -> tuple[float, float, float] | None:
    """The median of the rounds' ratios, with its 95 % bootstrap interval; None without rounds of both."""
    ratios = [one[way] / one[beside] for one in rounds if way in one and beside in one]
    if not ratios:
        return None
    draw = random.Random(0)
    drawn = (draw.choices(ratios, k=len(ratios)) for _ in range(_DRAWS))
    medians = sorted(statistics.median(one) for one in drawn)
    return (
        statistics.median(ratios),
        medians[int(0.025 * _DRAWS)],
        medians[int(0.975 * _DRAWS) - 1],
    )


def time_rows(rounds: Sequence[Mapping[str, float]]) -> list[Row]:
    """A row for each way, by the median of its rounds."""
    rows: list[Row] = []
    for way in dict.fromkeys(way for one in rounds for way in one):
        own = [one[way] for one in rounds if way in one]
        ratio = None if way == PLAIN else slower(rounds, way)
        row: Row = {"part": "time to first token", "way": way, "rounds": len(own)}
        row["ms"] = 1000 * statistics.median(own)
        row["of plain"] = None if ratio is None else ratio[0]
        row["interval"] = None if ratio is None else f"{ratio[1]:.2f} to {ratio[2]:.2f}"
        rows.append(row)
    return rows


def passes_rows(judged: Sequence[JudgedItem], rounds: Sequence[Mapping[str, float]]) -> list[Row]:
    """What each selection computes of a text beforehand, and after how many answers two calls for each of
    them, which name a sentence first, would have cost as much."""
    rows: list[Row] = []
    for arm in dict.fromkeys(arm for one in judged for arm in one["arms"]):
        passes = [one["arms"][arm]["passes"] for one in judged if _has_passes(one, arm)]
        if passes:
            mean = statistics.mean(passes)
            row: Row = {"part": "computed beforehand", "arm": arm, "passes over the text": mean}
            row["answers that pay them back"] = reuses_to_pay(mean, rounds)
            rows.append(row)
    return rows


def reuses_to_pay(passes: float, rounds: Sequence[Mapping[str, float]]) -> float | None:
    """Passes, as times of a prompt of which nothing is stored, over what each answer saves beside two
    calls; None where that was not timed or nothing is saved."""
    named = ("nothing stored", "two calls", "span")
    timed = [one for one in rounds if all(way in one for way in named)]
    if not timed:
        return None
    cold, two_calls, span = (statistics.median(one[way] for one in timed) for way in named)
    return passes * cold / (two_calls - span) if two_calls > span else None


def _has_passes(item: JudgedItem, arm: str) -> bool:
    return "passes" in item["arms"].get(arm, {})


def _row(part: str, arm: str, items: Sequence[JudgedItem]) -> Row:
    own = [one for one in items if arm in one["arms"]]
    row: Row = {"part": part, "arm": arm, "items": len(own)}
    row["gold NLL"] = statistics.mean(one["arms"][arm]["nll"] for one in own)
    if arm != PLAIN:
        found = clustered(own, _difference(PLAIN, arm, "nll"))
        if found is not None:
            row["gain"] = found[0]
            enough = len({one["cluster"] for one in own}) >= FEWEST_CLUSTERS
            row["interval"] = f"{found[1]:+.3f} to {found[2]:+.3f}" if enough else None
    row["KL from plain"] = statistics.mean(one["arms"][arm]["kl"] for one in own)
    for key, title in (("overlap", "in the answer's sentence"), ("f1", "F1")):
        values = [one["arms"][arm][key] for one in own if key in one["arms"][arm]]
        row[title] = statistics.mean(values) if values else None
        if key == "f1":
            row["answered"] = len(values)
    row["by chance"] = statistics.mean(one["chance"] for one in own)
    harm = clustered(own, _difference(arm, PLAIN, "unrelated"))
    row["unrelated NLL, change"] = None if harm is None else harm[0]
    return row


def _difference(first: str, second: str, key: str) -> Callable[[JudgedItem], float | None]:
    """`first` less `second`, of items that have both."""

    def of(item: JudgedItem) -> float | None:
        arms = item["arms"]
        a, b = arms.get(first, {}).get(key), arms.get(second, {}).get(key)
        return None if a is None or b is None else float(a - b)

    return of


def set_of(item: JudgedItem) -> str:
    """The set that an item is of."""
    return str(item["name"]).partition("/")[0]
