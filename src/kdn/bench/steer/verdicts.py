"""What the rows say, in sentences that follow from the numbers and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdn.bench.common.measure import said_of_aim
from kdn.bench.steer.guards import GUARDS, Guard, chosen_guard
from kdn.bench.steer.sums import (
    FEWEST_CLUSTERS,
    PLAIN,
    TWINS,
    JudgedItem,
    chosen_selection,
    gain_of,
    num_clusters,
    set_of,
    slower,
)
from kdn.plot import Figure, Interval, Points

__all__ = ["steer_figures", "steer_notes", "verdict"]

_WANTED = 300
"""Items that the aims ask for."""
_AIM = 0.02
"""What marking a span may add to the time to the first token."""
_SAID = {
    "oracle": "Stressing the right sentence",
    "look": "A look that acts where it is sure",
    "look-always": "A look that always acts",
    "retrieved-sure": "Stressing the nearest sentence where it is clear",
    "retrieved": "Stressing the nearest sentence",
}
_ERRING = ("look-always", "retrieved")
"""Those that may stress the wrong sentence."""
_RIGHT = 0.5
"""Of the stressed tokens so many lie in the answer's sentence where it counts as found."""
_DRAWN = (*_SAID, "random-sentence", "published")


def verdict(found: tuple[float, float, float] | None, clusters: int) -> str:
    """An interval in a word: gains, harms, shows no difference, or is too little to judge."""
    if found is None:
        return "was not judged"
    mean, low, high = found
    if clusters < FEWEST_CLUSTERS:
        return f"is too little to judge ({mean:+.3f}, {clusters} articles or questions)"
    word = "gains" if low > 0 else "harms" if high < 0 else "shows no difference"
    return f"{word} ({mean:+.3f}, {low:+.3f} to {high:+.3f})"


def steer_notes(
    judged: Sequence[JudgedItem],
    fit: Sequence[JudgedItem],
    rounds: Sequence[Mapping[str, float]],
) -> tuple[str, ...]:
    """The page's sentences, the most important first."""
    if not judged:
        return ("Nothing of the half `test` was judged.", *_timing_notes(rounds))
    notes = [_count_note(judged)]
    notes += [
        _by_set(judged, arm, said) for arm, said in _SAID.items() if num_clusters(judged, arm)
    ]
    notes += [
        _guard_note(judged, fit, guard) for guard in GUARDS if num_clusters(judged, guard.name)
    ]
    notes += [_right_and_wrong(judged, arm, _SAID[arm]) for arm in _ERRING]
    notes += [*_selection_notes(judged, fit), *_harm_notes(judged), *_timing_notes(rounds)]
    return tuple(notes)


def steer_figures(judged: Sequence[JudgedItem]) -> tuple[Figure, ...]:
    """The gain of each arm on each set, with its interval; and how means settled item by item."""
    gains, intervals = dict[str, Points](), dict[str, Sequence[Interval]]()
    settling = dict[str, Points]()
    for arm in _DRAWN:
        for name in dict.fromkeys(map(set_of, judged)):
            own = [one for one in judged if set_of(one) == name]
            found = gain_of(own, arm)
            if found is not None and num_clusters(own, arm) >= FEWEST_CLUSTERS:
                gains[f"{arm}, {name}"] = [(0.0, found[0])]
                intervals[f"{arm}, {name}"] = [found[1:]]
        if num_clusters(judged, arm) >= FEWEST_CLUSTERS:
            settling[arm] = _means_so_far(judged, arm)
    if not gains:
        return ()
    axis = "fall of the right answer's NLL, nats"
    return (
        Figure("Gain over the plain answer", "", axis, gains, intervals, level=0.0, is_linear=True),
        Figure("The mean so far", "items judged", axis, settling, level=0.0, is_linear=True),
    )


def _means_so_far(judged: Sequence[JudgedItem], arm: str) -> Points:
    total, means = 0.0, list[tuple[float, float]]()
    for number, one in enumerate((one for one in judged if arm in one["arms"]), 1):
        total += one["arms"][PLAIN]["nll"] - one["arms"][arm]["nll"]
        means.append((float(number), total / number))
    return means


def _count_note(judged: Sequence[JudgedItem]) -> str:
    sets = dict.fromkeys(map(set_of, judged))
    counts = ", ".join(f"{sum(set_of(one) == name for one in judged)} of {name}" for name in sets)
    clusters = len({(set_of(one), one["cluster"]) for one in judged})
    aim = "" if len(judged) >= _WANTED else f" Fewer than the {_WANTED} that were aimed at."
    return (
        f"{len(judged)} items of {clusters} articles or questions are judged: {counts}. Intervals are 95 %"
        f" bootstrap intervals that draw articles or questions whole.{aim}"
    )


def _by_set(judged: Sequence[JudgedItem], arm: str, said: str) -> str:
    found = []
    for name in dict.fromkeys(map(set_of, judged)):
        own = [one for one in judged if set_of(one) == name]
        found.append(f"{name} {verdict(gain_of(own, arm), num_clusters(own, arm))}")
    random = gain_of(judged, arm, beside="random-sentence")
    beside = verdict(
        random, min(num_clusters(judged, arm), num_clusters(judged, "random-sentence"))
    )
    return (
        f"{said}, by set: {'; '.join(found)}. Less a random sentence, over all sets: it {beside}."
    )


def _guard_note(judged: Sequence[JudgedItem], fit: Sequence[JudgedItem], guard: Guard) -> str:
    """How often a guarded choice is acted on, and what this model's own `fit` half would choose."""
    acts = [found for one in judged if (found := guard.acts(one)) is not None]
    own = [one for one in fit if guard.acts(one) is not None]
    best = chosen_guard(own, guard.arm)
    chosen = (
        f" Of {len(own)} items of `fit` `{best.measure}` >= {best.least:.3g} would be chosen."
        if best
        else ""
    )
    return (
        f"{_SAID[guard.name]} (`{guard.measure}` >= {guard.least:g}) acts on {sum(acts)} of {len(acts)}"
        f" items, and leaves the others as they are.{chosen}"
    )


def _right_and_wrong(judged: Sequence[JudgedItem], arm: str, said: str) -> str:
    """The gain where most of the stressed tokens lie in the answer's sentence, and where they do not."""
    own = [one for one in judged if "overlap" in one["arms"].get(arm, {})]
    right = [one for one in own if one["arms"][arm]["overlap"] >= _RIGHT]
    wrong = [one for one in own if one["arms"][arm]["overlap"] < _RIGHT]
    of_right, of_wrong = (
        f"{len(part)} items: it {verdict(gain_of(part, arm), num_clusters(part, arm))}"
        for part in (right, wrong)
    )
    return f"{said} takes the answer's sentence for {of_right}. It takes another for {of_wrong}."


def _selection_notes(judged: Sequence[JudgedItem], fit: Sequence[JudgedItem]) -> list[str]:
    """Of the selection that was chosen on the other half, and of every other that was judged."""
    best = chosen_selection(fit)
    num_fit = sum(any(name in one["arms"] for name in TWINS) for one in fit)
    how = (
        f"was chosen on the half `fit` ({num_fit} items)"
        if num_fit
        else "stands here, since none was judged on `fit`"
    )
    own = [one for one in judged if best in one["arms"]]
    share, oracle = gain_of(own, best), gain_of(own, "oracle")
    of_oracle = ""
    enough = num_clusters(judged, best) >= FEWEST_CLUSTERS
    if enough and share is not None and oracle is not None and oracle[0] > 0:
        percent = 100 * share[0] / oracle[0]
        of_oracle = f" That is {percent:.0f} % of the right sentence's gain (65 % is the goal)."
    said = _beside_its_twin(judged, best)
    notes = [f"Of the selections without a question `{best}` {how}: {said}.{of_oracle}"]
    others = [name for name in TWINS if name != best and num_clusters(judged, name)]
    return notes + [f"The selection `{one}`: {_beside_its_twin(judged, one)}." for one in others]


def _beside_its_twin(judged: Sequence[JudgedItem], name: str) -> str:
    plain = verdict(gain_of(judged, name), num_clusters(judged, name))
    twin = verdict(gain_of(judged, name, beside=TWINS[name]), num_clusters(judged, TWINS[name]))
    count = sum(name in one["arms"] for one in judged)
    return f"against plain, on {count} items, it {plain}; less its random twin it {twin}"


def _harm_notes(judged: Sequence[JudgedItem]) -> list[str]:
    found = []
    for arm in ("look", "look-always", "oracle"):
        harm = gain_of(judged, PLAIN, beside=arm, key="unrelated")
        if harm is not None:
            word = (
                "rises" if harm[1] > 0 else "falls" if harm[2] < 0 else "does not change measurably"
            )
            found.append(
                f"The NLL of an unrelated sentence {word} with `{arm}` ({harm[0]:+.3f}, {harm[1]:+.3f} to"
                f" {harm[2]:+.3f})."
            )
    return found


def _timing_notes(rounds: Sequence[Mapping[str, float]]) -> list[str]:
    span, calls = slower(rounds, "span"), slower(rounds, "two calls", beside="span")
    if span is None or calls is None:
        return ["Times to the first token were not taken."]
    mean, low, high = span
    aim = said_of_aim(low, high, 1 + _AIM)
    said = (
        f"Marking a span takes {mean:.3f} of the plain time to the first token ({low:.3f} to {high:.3f},"
        f" {len(rounds)} rounds): the aim of {100 * _AIM:.0f} % more {aim}. Two calls take"
        f" {calls[0]:.2f} times as long as a marked span ({calls[1]:.2f} to {calls[2]:.2f})."
    )
    return [said]
