"""How well could anybody predict?  Futures redrawn from the whole network's state.

The best a sender can know when it asks is the router's state at the moment the newest ACK's packet
left it.  So a copy of the *whole* world is kept from that long ago (more than any sender sees:
every queue, every packet on its way), its random numbers are redrawn several times, and each copy
runs to the question.  The median over the copies is the best guess under absolute error of one who
knew everything but the future; what it misses stands in no history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.tokens import ASKED, Samples, featurise
from kdn.net.world.records import MS, SECOND
from kdn.net.world.spec import Scenario
from kdn.net.world.world import Chooser, ChooserAnswer, ChooserQuestion, World

__all__ = ["Foreseen", "foresee"]

_HORIZON_S = 1.0


@dataclass(frozen=True)
class Foreseen:
    """A flow's history with the questions that were also put to redrawn futures.

    `guess` [S] is the bound's answer (ns above the smallest round trip known when asked).
    """

    samples: Samples
    guess: NDArray[np.float64]


class _Stop(Chooser):
    """Notes both queues' delays at the first question not before `t`."""

    def __init__(self, t_ns: int) -> None:
        self._t = t_ns
        self.delays: tuple[float | None, float | None] | None = None

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        if self.delays is None and question.now_ns >= self._t:
            assert question.world is not None, "a copy of a world asks"
            self.delays = question.world.delay_of_each(_HORIZON_S)
        return ChooserAnswer(question.mark)


def foresee(
    scenario: Scenario, inner: Chooser, times: int, draws: int = 9, seed: int = 0
) -> Foreseen:
    """Run `scenario`, flow 0 deciding by `inner`, and ask about `times` evenly spread moments.

    A moment at which either queue would lose the packet in the truth or in half of the futures is
    left out.
    """
    random = np.random.default_rng(seed)
    own = _Moments(inner)
    world = World(scenario, {0: own})
    row = world.state.flows[0]
    since = int(row["delay_back"]) + int(scenario.flows[0].out_ms * MS)
    asked, guesses = [], []
    for t in np.linspace(0.2 * scenario.seconds, 0.95 * scenario.seconds, times):
        t_ns = int(t * SECOND)
        world.run((t_ns - since) / SECOND)
        early = world.clone()
        own.wait_for(t_ns)
        while own.found is None and world.now_ns < scenario.seconds * SECOND:
            world.run(world.now_ns / SECOND + 0.001)
        if own.found is None:
            break
        now, inflight, truth = own.found
        for i, delay in enumerate(truth):
            futures = [_redrawn(early, now, random)[i] for _ in range(draws)]
            if delay is not None and sum(f is not None for f in futures) > draws // 2:
                t_ack = now + int(delay * SECOND) + int(row["delay_back"])
                asked.append((now, t_ack, inflight, 1 - i))
                guesses.append(float(np.median([f for f in futures if f is not None])))
    log = world.log()
    samples = featurise(log[log["flow"] == 0], np.array(asked, ASKED))
    truth_s = np.array([(a[1] - a[0] - int(row["delay_back"])) / SECOND for a in asked])
    guess = samples.delay + (np.array(guesses) - truth_s) * SECOND
    return Foreseen(samples, np.maximum(guess, 0.0))


def _redrawn(
    early: World, t_ns: int, random: np.random.Generator
) -> tuple[float | None, float | None]:
    """(L, C) delays at `t_ns` in one of the futures of `early`."""
    stop = _Stop(t_ns - MS // 2)
    copy = early.clone({0: stop})
    copy.state.clock["random"] = np.uint64(random.integers(1 << 63))
    while stop.delays is None and copy.now_ns < t_ns + 50 * MS:
        copy.run(copy.now_ns / SECOND + 0.001)
    return stop.delays or (None, None)


class _Moments:
    """Lets another chooser decide; notes the truth at the first question after a moment."""

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self._t: int | None = None
        self.found: tuple[int, int, tuple[float | None, float | None]] | None = None

    def wait_for(self, t_ns: int) -> None:
        self._t, self.found = t_ns, None

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        if self._t is not None and self.found is None and question.now_ns >= self._t:
            assert question.world is not None
            truth = question.world.delay_of_each(_HORIZON_S)
            self.found = question.now_ns, question.inflight, truth
        return self._inner.choose(question)
