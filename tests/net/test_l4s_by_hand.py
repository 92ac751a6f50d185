"""Forecasts on series made by hand, the account of strategies, the loss, and captures that are refused."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.l4s.baselines import Arima, Ridge, ewma, window_mean, window_p95
from kdn.net.l4s.captures import read_capture
from kdn.net.l4s.choosers import chooser, marking_of
from kdn.net.l4s.evaluate import errors
from kdn.net.l4s.loss import loss_of, sharp_changes
from kdn.net.l4s.margins import Margins
from kdn.net.l4s.policy import LastValue
from kdn.net.l4s.strategies import MarkingStrategies, Strategy, StrategyConfig
from kdn.net.l4s.tokens import (
    NUM_ASKED,
    NUM_FEATURES,
    WINDOW,
    Samples,
    featurise,
    new_track,
    note_ack,
    pose,
)
from kdn.net.world import CE, ECT0, ECT1
from kdn.net.world.records import LOG, MS


def series(delays_ms: list[float], low: list[bool] | None = None) -> Samples:
    """A question before each token and one after the last; each queue's answers are its own tokens."""
    num = len(delays_ms)
    delay = np.array([*delays_ms, 0.0]) * MS
    queue = np.array([*(low or [True] * num), True])
    last = np.zeros(num + 1)
    for i in range(num + 1):
        before = [j for j in range(i) if queue[j] == queue[i]]
        last[i] = delay[before[-1]] if before else 0.0
    times = np.arange(num + 1, dtype=np.int64) * 10 * MS
    return Samples(
        tokens=np.zeros((num, NUM_FEATURES), np.float32),
        token_t=times[:num],
        token_delay=delay[:num],
        token_low=queue[:num],
        questions=np.zeros((num + 1, NUM_ASKED), np.float32),
        asked_t=times,
        known=np.arange(num + 1),
        delay=delay,
        last=last,
        low=queue,
    )


def test_smoothing_starts_at_the_first_value_and_moves_by_an_eighth() -> None:
    """8, 16, 0: 8, then 9, then 9 * 7 / 8. The other queue's 80 does not count."""
    samples = series([8.0, 80.0, 16.0, 0.0], [True, False, True, True])
    assert ewma(samples)[[0, 2, 4]] / MS == pytest.approx([0.0, 8.0, 63 / 8])


def test_windows_hold_eight_tokens_of_their_queue_among_fifty() -> None:
    """Ten tokens 1 to 10: the last eight are 3 to 10, in the mean 6.5 and at 95 per cent 10."""
    samples = series([float(i) for i in range(1, 11)])
    assert window_mean(samples)[-1] / MS == pytest.approx(6.5)
    assert window_p95(samples)[-1] / MS == pytest.approx(10.0)
    far = series([7.0] + [1.0] * 50, [True] + [False] * 50)
    assert window_mean(far)[-1] == 0.0  # the only one of its queue is the fifty-first
    near = series([7.0] + [1.0] * 49, [True] + [False] * 49)
    assert window_mean(near)[-1] / MS == pytest.approx(7.0)


def test_arima_carries_a_trend_on_and_corrects_what_it_missed() -> None:
    """Squashed delays 1, 2, 3 with half of the last change: 3.5; innovations 1, 1, then 0.5 by an eighth."""
    ramp = series([math.sinh(value) for value in (1.0, 2.0, 3.0)])
    half = Arima(np.array([0.5, 0.0, 0.0]), 0.0)
    assert np.arcsinh(half(ramp)[-1] / MS) == pytest.approx(3.5)
    moving = Arima(np.array([0.0, 0.0, 0.0]), 0.5)
    # 1: innovation 1, forecast 0.5; 2: innovation 0.5, forecast 0.25; 3: innovation 0.75, forecast 0.375
    assert np.arcsinh(moving(ramp)[-1] / MS) == pytest.approx(3.375)
    older = Arima(np.array([0.0, 0.0, 1.0]), 0.0)
    assert np.arcsinh(older(ramp)[-1] / MS) == pytest.approx(
        4.0
    )  # the change of three before: 0 to 1


def test_arima_never_foretells_less_than_no_delay() -> None:
    falling = series([math.sinh(value) for value in (3.0, 0.5)])
    assert Arima(np.array([1.0, 0.0, 0.0]), 0.0)(falling)[-1] == 0.0


def test_arima_is_fitted_on_each_queue_alone() -> None:
    """One queue rises by 0.02 and 0.06 by turns, the other stands at 5."""
    steps = np.cumsum(np.tile([0.02, 0.06], 60))
    delays = [math.sinh(5.0 if i % 2 else steps[i // 2]) for i in range(240)]
    samples = series(delays, [i % 2 == 0 for i in range(240)])
    fitted = Arima.fit([samples])
    guess = np.arcsinh(fitted(samples)[100:240] / MS)
    assert guess == pytest.approx(np.arcsinh(samples.delay[100:240] / MS), abs=0.005)


def test_ridge_with_no_penalty_to_speak_of_learns_what_a_question_says() -> None:
    """The answer is the squashed last delay and the first number of the question, plus 0.1."""
    random = np.random.default_rng(3)
    samples = series([4.0] * 400)
    samples.questions[:, 0] = random.normal(0, 0.5, 401)
    wanted = np.sinh(np.arcsinh(samples.last / MS) + samples.questions[:, 0].clip(-1, 9) + 0.1) * MS
    known = replace(samples, delay=np.maximum(wanted, 0.0))
    fitted = Ridge.fit([known], penalty=1e-3)
    assert errors(fitted, [known])["mae_ms"] < 0.05
    heavy = Ridge.fit([known], penalty=1e9)
    assert heavy(known)[-1] / MS == pytest.approx(4.0, abs=0.01)  # all penalty: the last value


def test_errors_are_counted_once_half_a_window_is_known() -> None:
    """30 tokens: questions 25 to 30 count. All are 3 ms off but the last, which is sharp and 7 off."""
    samples = series([10.0] * 30)
    samples.delay[-1] = 20.0 * MS

    def guess(_: Samples) -> NDArray[np.float64]:
        return np.full(31, 13.0 * MS)

    seen = errors(guess, [samples])
    assert seen["num"] == WINDOW // 2 - 25 + 6
    assert seen["mae_ms"] == pytest.approx((5 * 3 + 7) / 6)
    assert seen["rmse_ms"] == pytest.approx(math.sqrt((5 * 9 + 49) / 6))
    assert seen["sharp_mae_ms"] == pytest.approx(7.0)
    assert errors(guess, [samples], start=0.9)["num"] == 3


def test_a_sharp_change_is_paid_for_a_second_time() -> None:
    """Delays 1 and 30 ms after 1 and 1: only the second is sharp, off by asinh(30) - asinh(1) = d > 0.5."""
    delay, last = torch.tensor([[1.0, 30.0]]), torch.tensor([[1.0, 1.0]])
    assert sharp_changes(delay, last).tolist() == [[False, True]]
    d = math.asinh(30.0) - math.asinh(1.0)
    huber, spike = d - 0.25, math.log(2.0)
    pinball = sum(share * d / 2 for share in (0.5, 0.9, 0.99))
    seen = loss_of(torch.zeros(1, 2, 5), delay, last, torch.ones(1, 2, dtype=torch.bool))
    assert float(seen) == pytest.approx(huber / 2 + huber + 0.2 * spike + 2 * pinball, rel=1e-5)


def test_what_is_not_valid_costs_nothing() -> None:
    delay, last = torch.tensor([[1.0, 500.0]]), torch.tensor([[1.0, 1.0]])
    seen = loss_of(torch.zeros(1, 2, 5), delay, last, torch.tensor([[True, False]]))
    assert float(seen) == pytest.approx(0.2 * math.log(2.0), rel=1e-5)


def test_a_margin_moves_by_its_gain_within_0_and_3() -> None:
    """A miss adds 0.99, a hit takes 0.01, of a gain of 1: 0.99, 0.98; never below 0 or above 3."""
    margins = Margins(1.0, 1e9)

    def margin() -> float:
        return math.asinh(margins.raised(ECT1, 0.0) / MS)

    margins.note(ECT1, 1.0, 2.0, 0)
    assert margin() == 0.0
    margins.note(ECT1, 3.0, 2.0, 0)
    assert margin() == pytest.approx(0.99)
    margins.note(ECT1, 2.0, 2.0, 0)  # as long as the forecast is no miss
    assert margin() == pytest.approx(0.98)
    for _ in range(5):
        margins.note(ECT1, 3.0, 2.0, 0)
    assert margin() == pytest.approx(3.0)
    assert margins.raised(ECT0, 5.0 * MS) == pytest.approx(5.0 * MS)


def ack(
    sent_ms: float, acked_ms: float, ecn: int = ECT1, arrived_ecn: int | None = None
) -> NDArray[np.void]:
    row = np.zeros(1, LOG)
    row["t_send"], row["t_ack"], row["size"] = int(sent_ms * MS), int(acked_ms * MS), 1500
    row["sent_ecn"], row["ecn"] = ecn, ecn if arrived_ecn is None else arrived_ecn
    return row


def test_a_token_says_delay_change_gap_size_queue_mark_and_silence() -> None:
    """The second of two: 3 ms above the least, sent 10 ms and heard 13 ms after the first, marked."""
    track, out = new_track(), np.zeros(NUM_FEATURES, np.float32)
    note_ack(track, ack(0, 20)[0], out)
    assert note_ack(track, ack(10, 33, ECT1, CE)[0], out)
    gap, silence = 0.2 * math.log1p(10_000), 0.2 * math.log1p(13_000)
    squashed = math.asinh(3.0)
    assert out.tolist() == pytest.approx(
        [squashed, squashed, gap, 1.0, 1.0, 1.0, silence, 0.0], rel=1e-5
    )
    assert float(track["marked"][0]) == pytest.approx(0.05)


def test_a_question_tells_each_queue_its_own_and_the_others_newest_delay() -> None:
    """Asked at 100 ms of the classic queue, which met 5 ms at 20 while the other met 2 ms at 40."""
    track, out = new_track(), np.zeros(NUM_ASKED, np.float32)
    spare = np.zeros(NUM_FEATURES, np.float32)
    for row in (ack(0, 10), ack(20, 35, ECT0), ack(40, 52)):
        note_ack(track, row[0], spare)
    assert pose(track, False, 100 * MS, 3000, out) == pytest.approx(math.asinh(5.0))
    expected = [
        math.asinh(5.0),
        -1.0,
        0.2 * math.log1p(80_000),
        math.asinh(2.0),
        0.2 * math.log1p(60_000),
    ]
    assert out[:5].tolist() == pytest.approx(expected, rel=1e-5)
    assert float(out[5]) == pytest.approx(0.25 * math.log1p(2.0), rel=1e-5)


def test_an_overtaken_ack_does_not_bring_an_old_delay_back() -> None:
    """Sent at 40 and heard first, then what was sent at 0: the newest delay stays that of 40."""
    forecaster = LastValue()
    forecaster.hear(np.concatenate([ack(40, 52), ack(0, 60), ack(41, 51)]))
    low, classic = forecaster.ask(70 * MS, 0)
    assert (low.median, low.p99, classic.median) == (0.0, 0.0, 0.0)  # 41 to 51 is the least
    forecaster.hear(ack(39, 80))
    assert forecaster.ask(90 * MS, 0)[0].median == 0.0


def test_an_ack_before_any_decision_belongs_to_no_strategy() -> None:
    strategies = MarkingStrategies(StrategyConfig(learned=1, compare_ms=0.0, patience_ms=0.0))
    strategies.note(5 * MS, True, 50.0 * MS)
    assert strategies.now(10 * MS) is Strategy.LOW
    strategies.note(9 * MS, True, 50.0 * MS)  # sent before the first decision
    assert strategies.now(11 * MS) is Strategy.LOW
    strategies.note(10 * MS, True, 50.0 * MS)  # the first of a decision: 50 ms, so others are tried
    assert strategies.now(12 * MS) is Strategy.CLASSIC


def test_first_four_packets_are_tried_then_two_more_for_each_that_did_well() -> None:
    """The default's tail is 10 ms. Four packets try the classic queue; one comes back well: two more."""
    strategies = MarkingStrategies(StrategyConfig(learned=100, compare_ms=1.0))
    for t in range(20):
        assert strategies.now(t * MS) is Strategy.LOW
        strategies.note(t * MS, True, 10.0 * MS)
    tried = [strategies.now((20 + i) * MS) for i in range(6)]
    assert tried == [Strategy.CLASSIC] * 4 + [Strategy.LOW] * 2
    strategies.note(21 * MS, False, 3.0 * MS)
    again = [strategies.now((26 + i) * MS) for i in range(4)]
    assert again == [Strategy.CLASSIC] * 2 + [Strategy.LOW] * 2


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no policy 'psychic'; there are all-L, all-C"):
        marking_of("psychic")
    with pytest.raises(BadInput, match="no policy 'psychic'"):
        chooser("psychic")
    assert chooser("all-L") is None


def capture(path: Path, *lines: str) -> Path:
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_a_capture_is_ordered_by_ack_without_lost_and_local_answers(tmp_path: Path) -> None:
    """40 and 20 ms, a lost probe, and an answer after 1 ms (below a quarter of the median)."""
    rows = ("0.0,0.040,0", "0.01,0.020,0", "0.02,,1", "0.03,0.001,0", "0.04,0.030,0")
    log = read_capture(capture(tmp_path / "up_dualpi2_l.csv.gz", "t_send_s,rtt_s,lost", *rows))
    assert ((log["t_ack"] - log["t_send"]) / MS).tolist() == pytest.approx([20, 40, 30])
    assert log["seq"].tolist() == [0, 1, 2]
    assert set(log["sent_ecn"]) == {ECT1}


def test_the_ecn_column_tells_queue_and_mark(tmp_path: Path) -> None:
    rows = ("0.0,0.02,1,0,900", "0.1,0.02,2,1,900")
    log = read_capture(capture(tmp_path / "x.csv.gz", "t_send_s,rtt_s,ecn,ece,size_bytes", *rows))
    assert log["sent_ecn"].tolist() == [ECT1, ECT0]
    assert log["ecn"].tolist() == [ECT1, CE]
    assert log["size"].tolist() == [900, 900]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("time,delay", "0,1"), "needs columns t_send_s and rtt_s"),
        (("t_send_s,rtt_s",), "needs columns"),
        (("t_send_s,rtt_s,lost", "0.0,,1"), "every probe was lost"),
        (("t_send_s,rtt_s", "0.0,soon"), "missing or no number: could not convert"),
        (("t_send_s,rtt_s,ecn", "0.0,0.02,1"), "missing or no number: 'ece'"),
    ],
)
def test_a_capture_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, lines: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        read_capture(capture(tmp_path / "c.csv.gz", *lines))


def test_a_capture_cut_off_in_the_middle_is_refused(tmp_path: Path) -> None:
    whole = capture(tmp_path / "c.csv.gz", "t_send_s,rtt_s", *(f"{i},0.02" for i in range(500)))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(BadInput, match="cannot read"):
        read_capture(whole)
    (tmp_path / "plain.gz").write_text("t_send_s,rtt_s\n")
    with pytest.raises(BadInput, match="cannot read"):
        read_capture(tmp_path / "plain.gz")


def test_an_empty_log_has_no_questions() -> None:
    samples = featurise(np.zeros(0, LOG))
    assert (len(samples.tokens), len(samples.questions)) == (0, 0)
