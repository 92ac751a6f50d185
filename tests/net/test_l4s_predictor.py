"""Tokens, the compiled predictor and its twins."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdn.net.l4s.baselines import Arima, Ridge, ewma, last_value, window_mean, window_p95
from kdn.net.l4s.choosers import packaged_weights
from kdn.net.l4s.collect import collect
from kdn.net.l4s.evaluate import errors, neural_guess
from kdn.net.l4s.loss import loss_of, sharp_changes
from kdn.net.l4s.online import AtOnce, OnlineConfig, OnlineStream, tune
from kdn.net.l4s.scenarios import training_scenario
from kdn.net.l4s.stream import PacketStream, num_weights, replay
from kdn.net.l4s.tokens import WINDOW, Samples, featurise, squash, unsquash
from kdn.net.l4s.train import Training, train
from kdn.net.l4s.transformer import Predictor, pack, unpack
from kdn.net.world import ECT0, ECT1, World
from kdn.net.world.records import LOG, MS

Floats = NDArray[np.float32]


def acks(*rows: tuple[float, float, int]) -> NDArray[Any]:
    """LOG rows from (sent ms, acknowledged ms, ECN)."""
    log = np.zeros(len(rows), LOG)
    log["t_send"] = [int(row[0] * MS) for row in rows]
    log["t_ack"] = [int(row[1] * MS) for row in rows]
    log["sent_ecn"] = log["ecn"] = [row[2] for row in rows]
    log["size"] = 1500
    return log


def flow(seed: int = 3, seconds: float = 4.0) -> NDArray[Any]:
    world = World(training_scenario(seed, seconds))
    world.run()
    log = world.log()
    own: NDArray[Any] = log[log["flow"] == 0]
    return own


def random_weights(seed: int = 1) -> Floats:
    torch.manual_seed(seed)
    model = Predictor()
    with torch.no_grad():
        model.weights["out_w"].normal_(std=0.1)
    return pack(model)


def test_squash_is_undone_by_unsquash() -> None:
    for delay in (0.0, 0.1 * MS, 3.0 * MS, 250.0 * MS):
        assert unsquash(squash(delay)) == pytest.approx(delay)
    assert unsquash(-1.0) == 0.0


def test_an_ack_counts_only_after_it_arrived() -> None:
    samples = featurise(acks((0, 10, ECT1), (5, 16, ECT1), (12, 40, ECT1), (17, 30, ECT1)))
    assert samples.known.tolist() == [0, 0, 1, 2]
    assert (samples.last / MS).tolist() == [0, 0, 0, 1]  # 11 ms, above a minimum of 10
    assert (samples.delay[2:] / MS).tolist() == [18, 3]


def test_queues_have_histories_of_their_own() -> None:
    samples = featurise(acks((0, 10, ECT1), (1, 30, ECT0), (40, 50, ECT1), (41, 51, ECT0)))
    assert (samples.last[2:] / MS).tolist() == [0, 19]
    assert samples.low.tolist() == [True, False, True, False]


def test_a_burst_is_one_token() -> None:
    burst = [(0.1 * i, 10 + 0.1 * i, ECT1) for i in range(5)]
    samples = featurise(acks(*burst, (1.0, 11.0, ECT1), (20.0, 31.0, ECT1)))
    assert len(samples.tokens) == 2
    assert samples.known[-1] == 2


def test_the_future_changes_no_answer() -> None:
    """Cutting the log off after a question leaves the question as it was."""
    log = flow()
    whole = featurise(log)
    middle = int(whole.asked_t[len(whole.asked_t) // 2])
    cut = featurise(log[log["t_ack"] <= middle])
    same = cut.asked_t <= int(cut.asked_t[-1]) - 200 * MS
    rows = np.searchsorted(whole.asked_t, cut.asked_t[same])
    known = whole.known[rows] <= len(cut.tokens)
    assert known.all()
    assert np.array_equal(whole.tokens[: len(cut.tokens)], cut.tokens)
    assert np.array_equal(whole.questions[rows][:50], cut.questions[same][:50])


def test_the_compiled_predictor_equals_the_torch_one() -> None:
    samples = featurise(flow())
    weights = random_weights()
    model = Predictor()
    unpack(weights, model)
    size = 220  # more than four windows, so that rings have turned
    rows = np.flatnonzero((samples.known > 0) & (samples.known <= size))[::5]
    t = torch.from_numpy
    with torch.inference_mode():
        expected = model(
            t(samples.tokens[None, :size]),
            t(samples.token_t[None, :size] / MS),
            t(samples.questions[None, rows]),
            t(samples.asked_t[None, rows] / MS),
            t(samples.known[None, rows]),
        )[0].numpy()
    assert np.abs(replay(weights, samples)[rows] - expected).max() < 1e-4


def test_a_stream_answers_what_a_replay_answers() -> None:
    log = flow(seconds=2.0)
    samples, weights = featurise(log), random_weights()
    expected = replay(weights, samples)
    stream, heard = PacketStream(weights), 0
    order = np.argsort(log["t_send"], kind="stable")
    for i in range(0, len(order), 7):
        row = log[order[i]]
        stop = int(np.searchsorted(log["t_ack"], row["t_send"], side="right"))
        stream.hear(log[heard:stop])
        heard = stop
        out = stream.raw(int(row["t_send"]), int(row["inflight"]))
        queue = 0 if row["sent_ecn"] == ECT1 else 1
        assert np.abs(out[queue, :5] - expected[i]).max() < 1e-5


def test_weights_pack_and_unpack_and_refuse_other_lengths() -> None:
    weights = random_weights()
    assert len(weights) == num_weights()
    assert 95_000 < num_weights() < 105_000
    with pytest.raises(ValueError, match="weights hold 5"):
        PacketStream(weights[:5])
    with pytest.raises(ValueError, match="weights hold 5"):
        unpack(weights[:5], Predictor())


def test_sharp_means_two_milliseconds_and_a_fifth() -> None:
    delay = torch.tensor([1.0, 5.0, 22.0, 30.0])
    last = torch.tensor([0.0, 2.0, 20.0, 20.0])
    assert sharp_changes(delay, last).tolist() == [False, True, False, True]


def test_loss_has_no_nan_without_sharp_changes() -> None:
    out, delay = torch.zeros(1, 4, 5), torch.full((1, 4), 3.0)
    assert torch.isfinite(loss_of(out, delay, delay, torch.ones(1, 4, dtype=torch.bool)))


def test_baselines_on_numbers_one_can_check() -> None:
    log = acks(*((20.0 * i, 20.0 * i + 10 + (i % 2) * 4, ECT1) for i in range(12)))
    samples = featurise(log)
    assert (last_value(samples)[-2:] / MS).tolist() == pytest.approx([4, 0])
    assert window_mean(samples)[-1] / MS == pytest.approx(2.0)
    assert window_p95(samples)[-1] / MS == pytest.approx(4.0)
    assert 0.0 < ewma(samples)[-1] / MS < 4.0


def test_ridge_and_arima_learn_what_alternates() -> None:
    log = acks(*((20.0 * i, 20.0 * i + 10 + (i % 2) * 4, ECT1) for i in range(300)))
    samples = featurise(log)
    for learned in (Ridge.fit([samples], penalty=0.1), Arima.fit([samples])):
        assert errors(learned, [samples])["mae_ms"] < 0.3
    assert errors(last_value, [samples])["mae_ms"] == pytest.approx(4.0)


def test_training_lowers_the_loss() -> None:
    flows = collect(2, 2.0, first_seed=77)
    losses: list[float] = []
    train(
        flows,
        Training(steps=24, batch=2, tokens=128, questions=64),
        Predictor(),
        lambda _, loss: losses.append(loss),
    )
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_the_packaged_predictor_beats_the_last_value_on_unseen_flows() -> None:
    flows = [featurise(flow(seed=70_000 + i, seconds=6.0)) for i in range(3)]
    neural = errors(neural_guess(packaged_weights()), flows)
    assert neural["mae_ms"] < errors(last_value, flows)["mae_ms"]


def test_tuning_keeps_what_helps_and_rolls_back_what_harms() -> None:
    log, weights = flow(seconds=6.0)[:1500], packaged_weights()
    gentle = tune(weights, log, OnlineConfig())
    assert gentle.accepted
    wild = tune(weights, log, OnlineConfig(tolerance=-0.9))
    assert not wild.accepted  # nothing is ten times better after one step
    assert wild.weights is weights


def test_an_online_stream_takes_steps_as_acks_come() -> None:
    log = flow(seconds=6.0)
    stream = OnlineStream(packaged_weights(), OnlineConfig(every=400), AtOnce())
    for start in range(0, 1600, 200):
        stream.hear(log[start : start + 200])
    stream.hear(log[:0])
    assert stream.accepted + stream.rejected >= 2


def test_tuning_runs_on_a_thread_that_close_ends() -> None:
    log = flow(seconds=6.0)
    stream = OnlineStream(packaged_weights(), OnlineConfig(every=400))
    stream.hear(log[:900])
    stream.close()
    stream.hear(log[900:910])
    assert stream.accepted + stream.rejected == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("kdn-l4s-tune")]


def test_window_is_what_the_ring_holds() -> None:
    samples: Samples = featurise(flow())
    assert len(samples.tokens) > 2 * WINDOW
