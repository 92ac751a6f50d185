"""Does choosing a queue per packet pay? Prediction, policies, adopters, and a real router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.bench.result import BenchOptions, Result
from kdn.clock import Clock, SystemClock
from kdn.machine import describe_machine
from kdn.net.l4s.baselines import Arima, Ridge, ewma, last_value, window_mean, window_p95
from kdn.net.l4s.captures import CAPTURES, read_capture
from kdn.net.l4s.choosers import packaged_lstm, packaged_weights
from kdn.net.l4s.evaluate import adopt, errors, judge, neural_guess, policy_world
from kdn.net.l4s.lab import Place, open_place, run_real
from kdn.net.l4s.scenarios import EVALUATION, training_scenario
from kdn.net.l4s.stream import Stream
from kdn.net.l4s.tokens import Samples, featurise
from kdn.net.world.records import ECT1, LOG, MS
from kdn.net.world.world import World

__all__ = ["run"]

Guesses = dict[str, Callable[[Samples], NDArray[np.float64]]]
_FIT_SEEDS, _TEST_SEEDS = 40_000, 50_000
_NEURAL = ("transformer", "lstm")


def run(options: BenchOptions) -> Result:
    """Every part of the comparison; `options.data` is a folder with `net/l4s` captures, or None."""
    quick, seed = options.quick, options.seed
    weights = packaged_weights()
    inference_us = time_inference(weights, SystemClock())
    guesses = _guesses(weights, *((6, 5.0) if quick else (50, 15.0)))
    rows = [
        *_simulated_prediction(guesses, *((5, 5.0) if quick else (40, 15.0))),
        *_captured_prediction(guesses, weights, options.data, 10 if quick else 200),
    ]
    policies = (
        ("all-L", "swift", "last-value", "oracle")
        if quick
        else ("all-L", "all-C", "random", "by-type", "last-value", "swift", "oracle")
    )
    shares = ("1/16",) if quick else ("1/16", "10%")
    seeds = (seed,) if quick else tuple(range(seed, seed + 2))
    outcomes = _policies(policies, shares, 3.0 if quick else 8.0, seeds, inference_us)
    rows += outcomes
    rows += _adopters(weights, inference_us, 3.0 if quick else 8.0, quick)
    real, place = _real(1 if quick else 5, 3.0 if quick else 8.0)
    rows += real
    return Result(
        bench="l4s",
        model="l4s predictor",
        machine=describe_machine(),
        config=options.describe() | {"seeds": list(seeds), "real_place": place},
        rows=rows,
        summary=_summary(rows, outcomes, real, inference_us),
    )


def time_inference(weights: NDArray[np.float32], clock: Clock) -> float:
    """Median microseconds for a pair of questions on one thread, the newest ACK included."""
    stream = Stream(weights)
    acks = np.zeros(300, LOG)
    acks["t_send"] = np.arange(300) * MS
    acks["t_ack"], acks["sent_ecn"] = acks["t_send"] + 20 * MS, ECT1
    stream.hear(acks[:100])
    stream.ask(0, 0)
    times = []
    for i in range(100, 300):
        start = clock.now()
        stream.hear(acks[i : i + 1])
        stream.ask(int(acks["t_ack"][i]), 15_000)
        times.append(clock.now() - start)
    return float(np.median(times) * 1e6)


def _flows(count: int, seconds: float, first_seed: int) -> list[Samples]:
    """Logs of flows that mark in random blocks: what a real exploration would leave behind."""
    found = []
    for i in range(count):
        world = World(training_scenario(first_seed + i, seconds))
        world.run()
        log = world.log()
        found.append(featurise(log[log["flow"] == 0]))
    return found


def _guesses(weights: NDArray[np.float32], count: int, seconds: float) -> Guesses:
    fitted = _flows(count, seconds, _FIT_SEEDS)
    guesses: dict[str, Callable[[Samples], NDArray[np.float64]]] = {
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


def _simulated_prediction(guesses: Guesses, count: int, seconds: float) -> list[dict[str, Any]]:
    flows = _flows(count, seconds, _TEST_SEEDS)
    return [
        {"part": "prediction", "on": "simulator, held-out seeds", "predictor": name}
        | errors(guess, flows)
        for name, guess in guesses.items()
    ]


def _captured_prediction(
    guesses: Guesses, weights: NDArray[np.float32], data: Path | None, steps: int
) -> list[dict[str, Any]]:
    """On the last 40 % of real captures: as trained on the simulator, and tuned on the first 60 %."""
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


def _policies(
    policies: Sequence[str],
    shares: Sequence[str],
    seconds: float,
    seeds: Sequence[int],
    cost_us: float,
) -> list[dict[str, Any]]:
    rows = []
    for scenario in EVALUATION:
        for share in shares:
            for seed in seeds:
                for policy in policies:
                    world = policy_world(scenario, policy, None, cost_us, share, seconds, seed)
                    world.run()
                    row = asdict(judge(world, policy, share))
                    rows.append({"part": "policy", "seed": seed} | row)
    return rows


def _adopters(
    weights: NDArray[np.float32], cost_us: float, seconds: float, quick: bool
) -> list[dict[str, Any]]:
    """What if everybody did it: 1 to 8 flows choosing per packet, in two of the scenarios."""
    rows = []
    for index in (1,) if quick else (1, 5):
        for count in (1, 4) if quick else (1, 2, 4, 8):
            for policy in ("all-L", "swift"):
                found = adopt(EVALUATION[index], count, policy, weights, cost_us, seconds)
                rows.append({"part": "adopters"} | found)
    return rows


def _real(pairs: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The floor, the router's capacity, then pairs of runs one after the other."""
    rows = []
    with open_place() as place:
        rows.append(_real_row(place, "all-L", "floor", seconds))
        rows.append(_real_row(place, "all-L", "load", seconds))
        for _ in range(pairs):
            rows.append(_real_row(place, "all-L", "video", seconds))
            rows.append(_real_row(place, "swift", "video", seconds))
        return rows, place.name


def _real_row(place: Place, policy: str, kind: str, seconds: float) -> dict[str, Any]:
    mbps = 55.0 if kind == "load" else 50.0
    found = run_real(place, policy, seconds, kind, mbps)
    p50, p95, p99 = np.percentile(found.delays_ms, [50, 95, 99])
    return {
        "part": "real",
        "place": place.name,
        "kind": kind,
        "policy": policy,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "goodput_mbps": found.goodput_mbps,
        "decision_us": found.sent["decision_us"],
        "bleached": found.reflector["bleached"],
    }


def _cut(rows: Sequence[Mapping[str, Any]], policy: str, field: str) -> list[float]:
    """Per scenario, share and seed: the fraction that `policy` takes off all-L's `field`."""
    base = {_place_of(row): row[field] for row in rows if row["policy"] == "all-L"}
    return [
        1.0 - row[field] / max(base[_place_of(row)], 1e-9)
        for row in rows
        if row["policy"] == policy
    ]


def _place_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["scenario"], row["weight"], row["seed"]


def _summary(
    rows: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    real: Sequence[Mapping[str, Any]],
    inference_us: float,
) -> dict[str, float | None]:
    simulated = {
        row["predictor"]: row for row in rows if row.get("on") == "simulator, held-out seeds"
    }
    plain = [row for name, row in simulated.items() if name not in _NEURAL]
    own, lstm = simulated["transformer"], simulated.get("lstm")
    best = min(row["mae_ms"] for row in plain)
    best_sharp = min(row["sharp_mae_ms"] for row in plain)
    p99 = float(np.median(_cut(outcomes, "swift", "p99_ms")))
    oracle = float(np.median(_cut(outcomes, "oracle", "p99_ms")))
    video = [row for row in outcomes if row["family"] in {"video", "own"}]
    pairs = [row["p99_ms"] for row in real if row["kind"] == "video"]
    ratios = [1.0 - after / before for before, after in zip(pairs[::2], pairs[1::2], strict=True)]
    return {
        "error_cut": 1.0 - own["mae_ms"] / best,
        "sharp_error_cut": 1.0 - own["sharp_mae_ms"] / best_sharp,
        "captured_error_cut": _captured_cut(rows),
        "lstm_error_cut": None if lstm is None else 1.0 - lstm["mae_ms"] / best,
        "p99_cut": p99,
        "video_p99_cut": float(np.median(_cut(video, "swift", "p99_ms"))),
        "oracle_p99_cut": oracle,
        "oracle_share": p99 / oracle if oracle > 0 else None,
        "goodput_loss": float(np.median(_cut(outcomes, "swift", "goodput_mbps"))),
        "others_goodput_loss": float(np.median(_cut(outcomes, "swift", "others_mbps"))),
        "inference_us": inference_us,
        "real_p99_cut": float(np.median(ratios)) if ratios else None,
        "real_floor_p99_ms": next(row["p99_ms"] for row in real if row["kind"] == "floor"),
    }


def _captured_cut(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over captures: the tuned Transformer against the best that is not neural."""
    cuts = []
    for capture in CAPTURES:
        seen = {row["predictor"]: row["mae_ms"] for row in rows if row.get("on") == capture}
        if seen:
            own = seen.pop("transformer, tuned")
            plain = min(error for name, error in seen.items() if name not in _NEURAL)
            cuts.append(1.0 - own / plain)
    return float(np.median(cuts)) if cuts else None
