"""What is knowable: everything where nothing is random, less where frames are, never nothing."""

from __future__ import annotations

import numpy as np

from kdn.net.l4s.baselines import last_value
from kdn.net.l4s.bound import foresee
from kdn.net.world import Flow, Hop, Scenario, constant, frames, steady
from kdn.net.world.records import MS
from kdn.net.world.world import ChooserAnswer, ChooserQuestion


class AsItIs:
    """Never changes its mind: the flow's own class, the plain twin of every chooser."""

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        return ChooserAnswer(question.mark)


def errors_ms(varying: bool) -> tuple[float, float]:
    """MAE of one who knows the whole network, and of the last value."""
    own = Flow("unresponsive", "ect1", steady(5.0), marking="ask", in_ms=9.0, out_ms=1.0)
    video = Flow("unresponsive", "ect1", frames(30.0, 60.0, varying=varying), in_ms=2.0)
    scenario = Scenario("x", (Hop(constant(100e6)),), (own, video), seconds=3.0)
    found = foresee(scenario, AsItIs(), times=60, draws=5)
    samples = found.samples
    last = np.abs(last_value(samples) - samples.delay).mean() / MS
    return float(np.abs(found.guess - samples.delay).mean() / MS), float(last)


def test_frames_of_one_size_leave_no_doubt() -> None:
    known, last = errors_ms(varying=False)
    assert known < 0.05 < last


def test_frames_of_random_size_cannot_be_foreseen() -> None:
    """A few large frames make most of the error, so that twenty moments would tell nothing."""
    known, last = errors_ms(varying=True)
    assert 0.2 < known < last
