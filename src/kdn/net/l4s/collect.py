"""Where the predictor's examples come from: worlds that are asked what either queue would do.

A log holds only the queue that was chosen.  A simulated world can be copied, so at each decision
both queues' delays are found, whichever is then taken; and the flow decides by an earlier
predictor as often as at random, so that the examples are those a running policy meets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.policy import Oracle, SwiftQueue
from kdn.net.l4s.scenarios import training_scenario
from kdn.net.l4s.stream import PacketStream
from kdn.net.l4s.tokens import ASKED, WINDOW, Samples, featurise
from kdn.net.world.records import ECT0, ECT1, SECOND
from kdn.net.world.world import Chooser, ChooserAnswer, ChooserQuestion, World

__all__ = ["Blocks", "Witness", "collect"]


class Blocks:
    """Stays in a queue for a random while, between two packets and two seconds."""

    def __init__(self, seed: int, low_share: float) -> None:
        self._random = np.random.default_rng(seed)
        self._low_share = low_share
        self._until = 0
        self._mark = ECT1

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        if question.now_ns >= self._until:
            stay_s = 10 ** self._random.uniform(-2.7, 0.3)
            self._until = question.now_ns + int(stay_s * SECOND)
            self._mark = ECT1 if self._random.random() < self._low_share else ECT0
        return ChooserAnswer(self._mark, probe=self._random.random() < 0.01)


class Witness:
    """Lets another chooser decide, and writes down what either queue would have done."""

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self._rows: list[tuple[int, int, int, int]] = []

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        assert question.world is not None, "a witness needs a world that can be copied"
        back = int(question.world.state.flows[question.flow]["delay_back"])
        for delay, low in zip(question.world.delay_of_each(1.0), (1, 0), strict=True):
            if delay is not None:
                t_ack = question.now_ns + int(delay * SECOND) + back
                self._rows.append((question.now_ns, t_ack, question.inflight, low))
        return self._inner.choose(question)

    def asked(self) -> NDArray[np.void]:
        """ASKED rows, in order of time."""
        return np.array(self._rows, ASKED)


def _decider(seed: int, weights: NDArray[np.float32] | None) -> Chooser:
    random = np.random.default_rng(seed)
    if weights is None or random.random() < 0.4:
        return Blocks(seed, float(random.choice([0.1, 0.3, 0.5, 0.7, 0.9])))
    if random.random() < 0.1:
        return Oracle()
    return SwiftQueue(PacketStream(weights))


def collect(
    num_flows: int,
    seconds: float,
    first_seed: int = 0,
    weights: NDArray[np.float32] | None = None,
    tick: Callable[[int], None] | None = None,
) -> list[Samples]:
    """Flows of training worlds; those with fewer than four windows of tokens are left out.

    With `weights` most of them decide by that predictor, otherwise all at random.
    """
    found = []
    for i in range(num_flows):
        seed = first_seed + i
        witness = Witness(_decider(seed, weights))
        world = World(training_scenario(seed, seconds, "ask"), {0: witness})
        world.run()
        log = world.log()
        samples = featurise(log[log["flow"] == 0], witness.asked())
        if len(samples.tokens) > 4 * WINDOW:
            found.append(samples)
        if tick is not None:
            tick(i + 1)
    return found
