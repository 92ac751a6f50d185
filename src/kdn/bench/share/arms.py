"""One held-out item through every way to share: what it does to the receiver's answer, and its work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax

from kdn.calibration.share_profile import PairSide, ShareItem, ShareOutcome, ShareProfiler
from kdn.core import Plan
from kdn.engine.alone import run_alone
from kdn.reuse.share import LinearMap, PairRecord, ShareChoice
from kdn.reuse.share.pairs import SharePoint
from kdn.reuse.share.plans import MAP_WORK

__all__ = [
    "HALF",
    "OWN",
    "RANDOM",
    "REUSE",
    "WHY",
    "ShareArms",
    "alora_outcome",
    "frontier_arm",
    "layer_arm",
]

OWN, REUSE = "own", "reuse"
HALF = 0.51
"""At most so much of a prefill's work a way may take that is to save half of it."""
ROW_RATIOS = (0.1, 0.2)
RANDOM_ROWS, OWN_STATES = "random rows 20%", "group, oracle E"
WHY = frozenset({"prefix group", "suffix group", OWN_STATES})
"""Arms that say why a way loses, and not how much: some items tell it."""
RANDOM = frozenset({"random group", RANDOM_ROWS})
"""Arms that need few items, too: a random choice is held against a way."""

Found = dict[str, float]
"""Of one arm: kl, nll, right (1 or 0) and work."""


def layer_arm(layer: int) -> str:
    """The arm that takes one layer from the sender and all others from the receiver."""
    return f"layer {layer}"


def frontier_arm(way: str) -> str:
    """The arm that is a way of the profile's frontier."""
    return f"frontier: {way}"


@dataclass
class ShareArms:
    """The arms of a pair, which follow from its profile: chosen there, judged here."""

    profiler: ShareProfiler
    record: PairRecord
    made: LinearMap | None
    seed: int = 0

    def __post_init__(self) -> None:
        layers = self.profiler.num_layers
        half = [one for one in self.record.usable("published") if one.work <= HALF]
        best = min(half, key=lambda one: one.kl) if half else None
        self.group = None if best is None else best.choice.group
        """The profile's best contiguous group with at most half of the work."""
        size = 0 if self.group is None else self.group[1] - self.group[0] + 1
        drawn = int(torch.randint(layers - size + 1, (1,), generator=self._random()))
        self.named = {REUSE: ShareChoice()}
        if size:
            self.named |= {
                "group": ShareChoice(self.group),
                "random group": ShareChoice((drawn, drawn + size - 1)),
                "prefix group": ShareChoice((0, size - 1)),
                "suffix group": ShareChoice((layers - size, layers - 1)),
            }
            self.named["rows, equal work"] = ShareChoice(ratio=self._equal_rows(size / layers))
        for ratio in ROW_RATIOS:
            self.named[f"rows {ratio:.0%}"] = ShareChoice(ratio=ratio)
        if self.made is not None:
            self.named["map"] = ShareChoice(mapped=True)
            for ratio in ROW_RATIOS:
                self.named[f"map + rows {ratio:.0%}"] = ShareChoice(ratio=ratio, mapped=True)
        for point in self.frontier():
            self.named[frontier_arm(point.choice.name)] = point.choice
        points = list(self.frontier())
        others = {choice for name, choice in self.named.items() if not name.startswith("frontier")}
        self.between = frozenset(
            frontier_arm(one.choice.name) for one in points[:-1] if one.choice not in others
        )
        """Points of the frontier that are no arm otherwise, without the nearest to the receiver."""

    def measure(
        self, item: ShareItem, *, scan: bool = False, without: Collection[str] = ()
    ) -> dict[str, Found]:
        """Every arm but those in `without` on one item; with `scan` also each layer reused alone."""
        named = {name: choice for name, choice in self.named.items() if name not in without}
        by_choice = dict(
            self.profiler.measure(item, list(dict.fromkeys(named.values())), self.made)
        )
        found = {OWN: _told(self.profiler.own(item))}
        found |= {
            name: _told(by_choice[choice], MAP_WORK if choice.mapped else 0.0)
            for name, choice in named.items()
            if choice in by_choice
        }
        if RANDOM_ROWS not in without:
            found[RANDOM_ROWS] = self._one(item, ShareChoice(ratio=0.2), random_rows=True)
        if OWN_STATES not in without and self.group is not None and self.group[0] > 0:
            found[OWN_STATES] = self._one(item, ShareChoice(self.group), oracle=True)
        if scan:
            for layer, outcome in self.profiler.one_layer_each(item):
                found[layer_arm(layer)] = _told(outcome)
        return found

    def _one(self, item: ShareItem, choice: ShareChoice, **how: bool) -> Found:
        return _told(next(self.profiler.measure(item, [choice], self.made, **how))[1])

    def frontier(self) -> Iterator[SharePoint]:
        """Those of the profile's frontier that cost less than computing it all."""
        yield from (one for one in self.record.usable("best") if 0 < one.work < 1)

    def _equal_rows(self, work: float) -> float:
        """The share of rows whose work, the probe pass included, is that of a group."""
        rows = [one for one in self.record.points if one.ratio and not one.mapped]
        probe = min((one.work - one.ratio for one in rows), default=0.0)
        return round(min(max(work - probe, 0.02), 1.0), 3)

    def _random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def alora_outcome(side: PairSide, item: ShareItem) -> Found:
    """The answer by an aLoRA over the base's context: its NLL, and whether it is right."""
    assert side.adapter is not None, "an aLoRA"
    prompt = (*item.context, *item.question)
    first = side.adapter.begins(prompt)
    assert first is not None, "questions of the task invoke it"
    wanted = tuple(range(len(prompt) - 1, len(prompt) + len(item.answer) - 1))
    plan = Plan((*prompt, *item.answer[:-1]), adapter_from=first, logits=wanted)
    ran = run_alone(side.model, side.attention, plan, adapter=side.adapter)
    logprobs = log_softmax(ran.logits, -1)
    gold = torch.tensor(item.answer)
    nll = -float(logprobs.gather(1, gold[:, None]).mean())
    return {"nll": nll, "right": float((logprobs.argmax(-1) == gold).all())}


def _told(outcome: ShareOutcome, more_work: float = 0.0) -> Found:
    return {
        "kl": round(outcome.kl, 6),
        "nll": round(outcome.nll, 6),
        "right": float(outcome.is_right),
        "work": round(outcome.work + more_work, 4),
    }
