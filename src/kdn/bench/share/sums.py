"""From measured items to tables, the summary and the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from kdn.bench.common.measure import said_of_aim
from kdn.bench.common.result import Row
from kdn.bench.common.scores import interval
from kdn.bench.share.arms import HALF, OWN, REUSE, frontier_arm, layer_arm
from kdn.bench.share.rows import ShareRows
from kdn.plot import Figure

__all__ = ["share_figures", "share_notes", "share_rows", "share_summary"]

KEYS = (
    "prefill_speedup",
    "quality_loss",
    "quality_loss_random",
    "quality_loss_group",
    "critical_share",
    "alora_prefill_speedup",
    "alora_score_diff",
)
_CRITICAL = 0.1
"""A layer is critical where its reuse alone costs so much of what the reuse of all costs, in KL."""
_LONG = 2000
"""The summary's speed-ups are of contexts of so many tokens."""
_LOSSLESS = 0.01
"""The aim: at most so much of the receiver's own score is lost."""

Items = Sequence[dict[str, Any]]


def share_summary(kept: ShareRows) -> dict[str, float | None]:
    """Over all pairs, the worst of them for losses; every key there ever is.

    Items behind lengthened contexts are few, and are left out.
    """
    by_pair = [kept.of(pair) for pair in kept.profiles]
    scans = [found for items in by_pair if (found := critical_share(items)) is not None]
    diffs = [
        one["alora"]["right"] - one["arms"][OWN]["right"]
        for items in by_pair
        for one in items
        if "alora" in one
    ]
    return {
        "prefill_speedup": _speedup(kept, "shared, memory", "nothing"),
        "quality_loss": _worst(
            score_loss(kept.of(pair), chosen_arm(kept.profiles.get(pair, ())))
            for pair in kept.profiles
        ),
        "quality_loss_random": _worst(score_loss(items, "random group") for items in by_pair),
        "quality_loss_group": _worst(score_loss(items, "group") for items in by_pair),
        "critical_share": round(fmean(scans), 4) if scans else None,
        "alora_prefill_speedup": _speedup(kept, "alora, memory", "alora, nothing"),
        "alora_score_diff": round(fmean(diffs), 4) if diffs else None,
    }


def score_loss(items: Items, arm: str | None) -> tuple[float, float, float] | None:
    """The share of the receiver's own score that an arm loses, with its 95 % bootstrap interval over
    contexts; None where there is no score to lose.

    A bootstrap cannot draw a loss that was never seen.  Where none of n contexts with right answers lost
    one, up to 3 / n of them may (the rule of three), and the interval ends there.
    """
    some = [one for one in items if arm in one["arms"]]
    own = _mean(some, OWN, "right")
    if arm is None or not own:
        return None
    lost = [(one["arms"][OWN]["right"] - one["arms"][arm]["right"]) / own for one in some]
    mean, low, high = interval(_by_context(some, lost))
    if max(lost) <= 0:
        right = [one["arms"][OWN]["right"] for one in some]
        high = max(high, min(3 / sum(share > 0 for share in _by_context(some, right)), 1.0))
    return round(mean, 4), round(low, 4), round(high, 4)


def chosen_arm(frontier: Items) -> str | None:
    """Of the ways of a profile with at most half of the work, the one with the least KL there: it is chosen
    on other contexts than those it is judged on."""
    fitting = [one for one in frontier if 0 < one["work"] <= HALF]
    return frontier_arm(min(fitting, key=lambda one: one["kl"])["arm"]) if fitting else None


def critical_share(items: Items) -> float | None:
    """The share of layers whose reuse alone costs a tenth of the KL that the reuse of all costs."""
    scanned = [one for one in items if layer_arm(0) in one["arms"]]
    whole = _mean(scanned, REUSE, "kl") if scanned else 0.0
    if not whole:
        return None
    layers = [arm for arm in _arms(scanned) if arm.startswith("layer")]
    critical = sum(_mean(scanned, arm, "kl") >= _CRITICAL * whole for arm in layers)
    return critical / len(layers)


def share_rows(kept: ShareRows) -> list[Row]:
    """A table a pair, the frontier of its profile, then times."""
    rows: list[Row] = []
    for pair in kept.pairs:
        items = kept.of(pair)
        rows += [_row(pair, items, arm) for arm in _arms(items)]
        rows += [{"pair": f"{pair}, profile"} | point for point in kept.profiles.get(pair, ())]
    for length in dict.fromkeys(one["length"] for one in kept.rounds):
        rounds = [one["round"] for one in kept.rounds if one["length"] == length]
        for way in dict.fromkeys(way for one in rounds for way in one):
            values = [one[way] for one in rounds if way in one]
            rows.append({"pair": f"time to first token, {length} tokens", "arm": way, "items": len(values),
                         "ttft_ms": round(median(values), 2),
                         "spread": f"{min(values):.1f}-{max(values):.1f}",
                         "speedup": _ratio(rounds, way, "nothing")})  # fmt: skip
    return rows


def share_notes(kept: ShareRows) -> tuple[str, ...]:
    """What follows from the numbers, and how many there are."""
    notes = []
    for pair in kept.pairs:
        items = kept.of(pair)
        best = chosen_arm(kept.profile_of(pair))
        if best is None or not items:
            continue
        num_contexts = len(_by_context(items, [0.0] * len(items)))
        lost = "too few items for a score"
        if pair in kept.profiles:
            lost = _lost(score_loss(items, best))
        share = _mean(items, best, "kl") / max(_mean(items, REUSE, "kl"), 1e-9)
        notes.append(
            f"{pair}: {len(items)} held-out items of {num_contexts} contexts; of the ways with at most half"
            f" of the work the profile"
            f" chose {best}: {share:.2f} of plain reuse's KL, {lost}."
        )
    notes.append(
        "An answer is right where every token of the gold answer is the likeliest one before it."
    )
    return tuple(notes)


def share_figures(kept: ShareRows) -> tuple[Figure, ...]:
    """KL against work, held out, a figure a pair."""
    figures = []
    for pair in kept.profiles:
        items = kept.of(pair)
        shown = [arm for arm in _arms(items) if arm != OWN and not arm.startswith("layer")]
        lines = {
            arm: [(_mean(items, arm, "work"), _mean(items, arm, "kl"))]
            for arm in shown
            if not arm.startswith("frontier")
        }
        if lines:
            axes = ("work, as a share of a prefill", "KL to the receiver's own, nats")
            figures.append(Figure(pair, *axes, lines, is_linear=True))
    return tuple(figures)


def _row(pair: str, items: Items, arm: str) -> Row:
    having = [one for one in items if arm in one["arms"]]
    some = [one["arms"][arm] for one in having]
    own = [one["arms"][OWN] for one in having]
    kl, low, high = interval(_by_context(having, [one["kl"] for one in some]))
    changes = [one["nll"] - mine["nll"] for one, mine in zip(some, own, strict=True)]
    nll, nll_low, nll_high = interval(_by_context(having, changes))
    score, score_low, score_high = interval(_by_context(having, [one["right"] for one in some]))
    return {
        "pair": pair,
        "arm": arm,
        "items": len(some),
        "work": round(fmean(one["work"] for one in some), 4),
        "kl": round(kl, 5),
        "kl_interval": f"{low:.4f} to {high:.4f}",
        "nll_change": round(nll, 4),
        "nll_interval": f"{nll_low:+.4f} to {nll_high:+.4f}",
        "score": round(score, 4),
        "score_interval": f"{score_low:.3f} to {score_high:.3f}",
    }


def _arms(items: Items) -> list[str]:
    return list(dict.fromkeys(arm for one in items for arm in one["arms"]))


def _mean(items: Items, arm: str, what: str) -> float:
    some = [one for one in items if arm in one["arms"]]
    return fmean(_by_context(some, [one["arms"][arm][what] for one in some]) or [0.0])


def _by_context(items: Items, values: Sequence[float]) -> list[float]:
    """The mean of each context's items: they share what is read, so an interval is drawn over contexts."""
    found: dict[str, list[float]] = {}
    for one, value in zip(items, values, strict=True):
        found.setdefault(one["item"].rsplit("/", 1)[0], []).append(value)
    return [fmean(some) for some in found.values()]


def _worst(losses: Iterable[tuple[float, float, float] | None]) -> float | None:
    known = [loss[0] for loss in losses if loss is not None]
    return max(known) if known else None


def _speedup(kept: ShareRows, way: str, base: str) -> float | None:
    """How much longer `base` takes than `way`, at the least length from LONG tokens on, else at the most."""
    lengths = sorted({one["length"] for one in kept.rounds})
    chosen = next((one for one in lengths if one >= _LONG), lengths[-1] if lengths else None)
    return _ratio([one["round"] for one in kept.rounds if one["length"] == chosen], way, base)


def _ratio(rounds: Sequence[dict[str, float]], way: str, base: str) -> float | None:
    """The median over rounds of `base` over `way`."""
    ratios = [one[base] / one[way] for one in rounds if base in one and one.get(way)]
    return round(median(ratios), 3) if ratios else None


def _lost(loss: tuple[float, float, float] | None) -> str:
    if loss is None:
        return "no score to lose"
    mean, low, high = loss
    aim = said_of_aim(low, high, _LOSSLESS)
    return (
        f"{mean:+.1%} of the receiver's score lost ({low:+.1%} to {high:+.1%}): the aim of"
        f" {_LOSSLESS:.0%} {aim}"
    )
