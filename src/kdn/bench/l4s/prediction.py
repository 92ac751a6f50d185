"""How well the next delay is predicted: on packets sent, on either queue, against what is knowable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.baselines import Arima, Ridge, ewma, last_value, window_mean, window_p95
from kdn.net.l4s.bound import Foreseen, foresee
from kdn.net.l4s.captures import CAPTURES, read_capture
from kdn.net.l4s.choosers import packaged_lstm
from kdn.net.l4s.collect import Blocks, Witness
from kdn.net.l4s.evaluate import errors, neural_guess
from kdn.net.l4s.scenarios import training_scenario
from kdn.net.l4s.tokens import Samples, featurise
from kdn.net.world.world import World

__all__ = ["BOUND", "EITHER", "NEURAL", "SENT", "captured", "knowable", "simulated"]

Guesses = dict[str, Callable[[Samples], NDArray[np.float64]]]
_FIT_SEEDS, _TEST_SEEDS = 40_000, 50_000
NEURAL = ("transformer", "lstm")
SENT = "simulator, packets sent"
EITHER = "simulator, either queue"
BOUND = "simulator, against what is knowable"


def simulated(weights: NDArray[np.float32], count: int, seconds: float) -> list[dict[str, Any]]:
    """Errors on flows of held-out seeds: about their own packets, and about both queues."""
    rows = []
    for name, make in ((SENT, _sent), (EITHER, _either)):
        guesses = _guesses(weights, make(count, seconds, _FIT_SEEDS))
        rows += _rows(name, guesses, make(count, seconds, _TEST_SEEDS))
    return rows


def knowable(weights: NDArray[np.float32], count: int, moments: int) -> list[dict[str, Any]]:
    """The same errors at a few moments, beside the median of futures redrawn from the whole world."""
    guesses = _guesses(weights, _either(count, 6.0, _FIT_SEEDS))
    seen = [_foreseen(_TEST_SEEDS + i, moments) for i in range(count)]
    rows = _rows(BOUND, guesses, [one.samples for one in seen])
    answers = {id(one.samples): one.guess for one in seen}
    bound = {"whole network known": lambda samples: answers[id(samples)]}
    return rows + _rows(BOUND, bound, [one.samples for one in seen])


def _foreseen(seed: int, moments: int) -> Foreseen:
    return foresee(training_scenario(seed, 6.0, "ask"), Blocks(seed, 0.5), moments, seed=seed)


def _rows(on: str, guesses: Guesses, flows: Sequence[Samples]) -> list[dict[str, Any]]:
    return [
        {"part": "prediction", "on": on, "predictor": name} | errors(guess, flows)
        for name, guess in guesses.items()
    ]


def _sent(count: int, seconds: float, first_seed: int) -> list[Samples]:
    """Logs of flows that mark in random blocks: what a real exploration would leave."""
    found = []
    for i in range(count):
        world = World(training_scenario(first_seed + i, seconds))
        world.run()
        log = world.log()
        found.append(featurise(log[log["flow"] == 0]))
    return found


def _either(count: int, seconds: float, first_seed: int) -> list[Samples]:
    """Flows that stay in a queue for a random while; at each decision both queues are asked about."""
    found = []
    for i in range(count):
        witness = Witness(Blocks(first_seed + i, 0.5))
        world = World(training_scenario(first_seed + i, seconds, "ask"), {0: witness})
        world.run()
        log = world.log()
        found.append(featurise(log[log["flow"] == 0], witness.asked()))
    return found


def _guesses(weights: NDArray[np.float32], fitted: Sequence[Samples]) -> Guesses:
    guesses: Guesses = {
        "last value": last_value,
        "ewma": ewma,
        "window mean": window_mean,
        "window p95": window_p95,
        "ridge": Ridge.fit(fitted),
        "arima": Arima.fit(fitted),
        "transformer": neural_guess(weights),
    }
    lstm = packaged_lstm()
    if lstm is not None:
        guesses["lstm"] = lstm
    return guesses


def captured(
    weights: NDArray[np.float32], data: Path | None, count: int, steps: int
) -> list[dict[str, Any]]:
    """On the last 40 % of real captures: as trained on the simulator, and tuned on the first 60 %."""
    guesses = _guesses(weights, _sent(count, 6.0, _FIT_SEEDS)) if data is not None else {}
    rows = []
    for capture in CAPTURES if data is not None else ():
        assert data is not None
        path = data / "net" / "l4s" / f"{capture}.csv.gz"
        if path.exists():
            flow = featurise(read_capture(path))
            rows += [
                {"part": "prediction", "on": capture, "predictor": name}
                | errors(guess, [flow], start=0.6)
                for name, guess in (guesses | _tuned(weights, flow, steps)).items()
            ]
    return rows


def _tuned(weights: NDArray[np.float32], flow: Samples, steps: int) -> Guesses:
    """Ridge fitted and the Transformer tuned on the flow's first 60 %, to be judged on the rest."""
    import torch

    from kdn.net.l4s.online import first_part
    from kdn.net.l4s.train import Training, train
    from kdn.net.l4s.transformer import Predictor, pack, unpack

    known = first_part(flow, int(0.6 * len(flow.questions)))
    model = Predictor()
    unpack(weights, model)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train([known], Training(steps=steps, batch=4, rate=5e-4), model)
    torch.set_num_threads(before)
    return {
        "ridge, refitted": Ridge.fit([known], per_flow=20_000),
        "transformer, tuned": neural_guess(pack(model)),
    }
