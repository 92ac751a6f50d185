"""Is the simulator right?  Real runs of some arms, each twice with equal calls, and both played again.

How far two equal real runs lie apart is the floor of what can be asked of a simulator: one that knew the
mean of all equal runs would still miss the mean of two by half of their mean difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdn.api.prompts import Reuse
from kdn.bench.common.result import Row
from kdn.bench.common.scores import word_f1
from kdn.bench.rag.arms import Arms, blended_arms
from kdn.bench.rag.real import RealQuery, RealRuns, replayed_s
from kdn.bench.rag.simulate import EngineSpeed
from kdn.bench.rag.workload import AskedQuestion, recall
from kdn.rag.metis import QuestionProfile

__all__ = ["CheckedArm", "RealCheck", "simulator_summary"]


@dataclass(frozen=True)
class CheckedArm:
    """Two equal real runs of an arm, and what the simulator makes of them."""

    name: str
    made: tuple[Sequence[RealQuery], Sequence[RealQuery]]
    played_s: float
    """Mean delay of both runs' calls on the simulated engine, at the speeds before and after them."""

    @property
    def real_s(self) -> float:
        """Mean delay of both runs."""
        return statistics.fmean(map(mean_s, self.made))

    @property
    def error(self) -> float:
        """How much sooner (below zero) or later the simulator is, as a share of the real delay."""
        return self.played_s / self.real_s - 1

    @property
    def spread(self) -> float:
        """How far the two runs lie apart, as a share of their mean."""
        first, again = map(mean_s, self.made)
        return abs(first - again) / self.real_s

    def f1(self, asked: Sequence[AskedQuestion]) -> float:
        """Mean F1 of the answers of both runs."""
        return statistics.fmean(
            word_f1(query.text, one.question.answers)
            for made in self.made
            for query, one in zip(made, asked, strict=False)
        )

    def row(self, asked: Sequence[AskedQuestion]) -> Row:
        """What the page shows of it."""
        first, again = self.made
        recalls = [
            found
            for query, one in zip(first, asked, strict=False)
            if (found := recall(one, query.configuration)) is not None
        ]
        return {
            "arm": self.name,
            "load": "real, saturation",
            "mean s": self.real_s,
            "simulated s": self.played_s,
            "first run s": mean_s(first),
            "equal run s": mean_s(again),
            "recall": statistics.fmean(recalls) if recalls else None,
            "F1": self.f1(asked),
            "chunks": statistics.fmean(query.configuration.num_chunks for query in first),
        }


def mean_s(made: Sequence[RealQuery]) -> float:
    """Mean delay of a run."""
    return statistics.fmean(query.delay_s for query in made)


def simulator_summary(checked: Sequence[CheckedArm]) -> dict[str, float]:
    """The simulator's mean error over the arms, its sign left and not, and the floor that runs set it."""
    return {
        "simulator_error": statistics.fmean(abs(one.error) for one in checked),
        "simulator_bias": statistics.fmean(one.error for one in checked),
        "simulator_error_floor": statistics.fmean(one.spread for one in checked) / 2,
    }


@dataclass(frozen=True)
class RealCheck:
    """Runs arms over the first questions, with half of their parts stored."""

    real: RealRuns
    asked: Sequence[AskedQuestion]
    arms: Arms
    stored_share: float
    fits: int
    """Queries by which the machine's speed is measured after the runs of an arm."""
    speed: Callable[[], EngineSpeed]
    """The simulated engine's, as fitted last."""
    say: Callable[[str], None]

    def run(
        self,
        names: Sequence[str],
        known: Mapping[str, QuestionProfile],
        arrivals_s: Sequence[float],
    ) -> Iterator[CheckedArm]:
        """Each arm, with these right profiles, at these arrivals."""
        num_probe = self.real.model().frame_tokens
        for name in names:
            self.say(f"real runs: {name}")
            before = self.speed()
            first = self._once(name, known, arrivals_s)
            again = self._once(name, known, arrivals_s, first)
            # The machine's speed before the runs and after them: a shared one does not keep it.
            self.real.fit(self.fits, rows=False)
            played = [
                statistics.fmean(replayed_s(made, arrivals_s, speed, num_probe))
                for made in (first, again)
                for speed in (before, self.speed())
            ]
            yield CheckedArm(name, (first, again), statistics.fmean(played))

    def _once(
        self,
        name: str,
        known: Mapping[str, QuestionProfile],
        arrivals_s: Sequence[float],
        like: Sequence[RealQuery] = (),
    ) -> list[RealQuery]:
        """A run with KV of its own; with the configurations of `like` where there is one."""
        reuse: Reuse = "blend" if name in blended_arms() else "exact"
        salt = f"arm-{name}{'-again' if like else ''}"
        self.real.prefill(salt, self.stored_share, len(arrivals_s), like)
        fixed = [query.configuration for query in like]
        arm = self.arms[name]
        return self.real.run(arm, known.__getitem__, arrivals_s, salt, reuse, fixed=fixed)
