"""What a sender knows, as numbers: a token per acknowledged packet, a question per packet to send.

One compiled featuriser serves training, benchmarks and the running sender, so that what is
learned is what is seen.  Nothing enters before its ACK has arrived.  Delays are round trips above
the smallest seen so far, on the scale `squash`, which is linear below a millisecond and
logarithmic above; so a model means the same on a fast and on a slow path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.rhythm import NUM_FOLDED, TRACK_FIELDS, fold, note_beat
from kdn.net.world.compiled import compiled
from kdn.net.world.records import CE, ECT1, MS, Rows

__all__ = [
    "ASKED",
    "NUM_ASKED",
    "NUM_FEATURES",
    "TRACK",
    "WINDOW",
    "Samples",
    "featurise",
    "new_track",
    "note_ack",
    "pose",
    "sent_questions",
    "squash",
    "unsquash",
]

WINDOW = 50
"""Tokens a question looks back on (a reconstruction; the published window is not established)."""
NUM_FEATURES = 8
"""Numbers in a token."""
NUM_ASKED = 8 + NUM_FOLDED
"""Numbers in a question."""

_LEAST_GAP = MS // 2
"""Packets of one queue sent closer together than this share a token: a burst is one observation."""
_LONG_AGO = 10**10

TRACK = np.dtype(
    [
        ("min_rtt", "f8"),
        ("deviation", "f8"),  # smoothed |change| of the squashed delay
        ("count", "i8"),  # tokens so far
        ("t_ack", "i8"),
        ("t_token", "i8"),  # when the newest token's packet was sent
        ("delay_l", "f8"),  # newest delay of each queue, ns above the minimum
        ("delay_c", "f8"),
        ("sent_l", "i8"),  # when that packet was sent
        ("sent_c", "i8"),
        ("token_l", "i8"),  # when the newest token of the queue was sent
        ("token_c", "i8"),
        ("marked", "f8"),  # smoothed share of CE
        *TRACK_FIELDS,
    ]
)


ASKED = np.dtype([("t", "i8"), ("t_ack", "i8"), ("inflight", "i8"), ("low", "i8")])
"""A question and its answer: a packet sent at `t` into that queue is acknowledged at `t_ack`."""


@dataclass(frozen=True)
class Samples:
    """One flow's history and every packet it sent, as features.

    `tokens` [T, 8] in order of ACK arrival with send times `token_t` [T] (ns); `questions` [S, 16]
    in send order, each with its time `asked_t` [S], the tokens that had arrived `known` [S], the
    answer `delay` [S] (ns above the minimum known when asked), the newest same-queue delay
    `last` [S] and the queue `low` [S].
    """

    tokens: NDArray[np.float32]
    token_t: NDArray[np.int64]
    token_delay: NDArray[np.float64]
    token_low: NDArray[np.bool_]
    questions: NDArray[np.float32]
    asked_t: NDArray[np.int64]
    known: NDArray[np.int64]
    delay: NDArray[np.float64]
    last: NDArray[np.float64]
    low: NDArray[np.bool_]


def new_track() -> NDArray[Any]:
    """The memory of a flow that has heard nothing yet."""
    track = np.zeros(1, TRACK)
    track["min_rtt"] = 1e18
    for name in ("sent_l", "sent_c", "token_l", "token_c", "t_token"):
        track[name] = -_LONG_AGO
    return track


@compiled
def squash(delay_ns: float) -> float:
    """asinh of milliseconds: 0.1 ms is 0.1, 10 ms is 3, 100 ms is 5.3."""
    return float(np.arcsinh(delay_ns / MS))


@compiled
def unsquash(value: float) -> float:
    """The delay (ns) whose `squash` is `value`; never negative."""
    return float(max(np.sinh(value), 0.0) * MS)


@compiled
def _log_us(gap_ns: float) -> float:
    return float(np.log1p(max(gap_ns, 0.0) / 1000.0) * 0.2)


@compiled
def note_ack(track: Rows, row: Rows, out: NDArray[np.float32]) -> bool:
    """Take note of an ACK (a LOG row). True when it made a token, which is then in `out` [8]."""
    t = track[0]
    rtt = float(row.t_ack - row.t_send)
    t.min_rtt = min(t.min_rtt, rtt)
    delay, low, marked = rtt - t.min_rtt, row.sent_ecn == ECT1, row.ecn == CE
    before = t.delay_l if low else t.delay_c
    newest = t.sent_l if low else t.sent_c
    change = squash(delay) - squash(before)
    gap, silence = row.t_send - t.t_token, row.t_ack - t.t_ack
    t.t_ack = row.t_ack
    if row.t_send >= newest:
        _renew(t, low, delay, row.t_send)
    if row.t_send - (t.token_l if low else t.token_c) < _LEAST_GAP:
        return False
    if low:
        t.token_l = row.t_send
    else:
        t.token_c = row.t_send
    t.deviation += 0.05 * (abs(change) - t.deviation)
    t.marked += 0.05 * ((1.0 if marked else 0.0) - t.marked)
    t.t_token, t.count = row.t_send, t.count + 1
    note_beat(t, squash(delay), low, row.t_send)
    out[0], out[1] = squash(delay), change
    out[2], out[3] = _log_us(gap), row.size / 1500.0
    out[4], out[5] = 1.0 if low else -1.0, 1.0 if marked else 0.0
    out[6], out[7] = _log_us(silence), np.log1p(row.inflight / 1500.0) * 0.25
    return True


@compiled
def _renew(t: Rows, low: bool, delay: float, t_send: int) -> None:
    if low:
        t.delay_l, t.sent_l = delay, t_send
    else:
        t.delay_c, t.sent_c = delay, t_send


@compiled
def pose(track: Rows, low: bool, now: int, inflight: int, out: NDArray[np.float32]) -> float:
    """The question "how long would a packet sent now take in this queue?" into `out` [16].

    Returns the queue's newest squashed delay, to which a model's answer is relative.
    """
    t = track[0]
    newest = squash(t.delay_l if low else t.delay_c)
    out[0], out[1] = newest, 1.0 if low else -1.0
    out[2] = _log_us(now - (t.sent_l if low else t.sent_c))
    out[3] = squash(t.delay_c if low else t.delay_l)
    out[4] = _log_us(now - (t.sent_c if low else t.sent_l))
    out[5] = np.log1p(inflight / 1500.0) * 0.25
    out[6], out[7] = t.deviation, t.marked
    fold(t, low, now, out[8:])
    return newest


@compiled
def _walk(
    track: Rows,
    acks: Rows,
    asked: Rows,
    tokens: NDArray[np.float32],
    token_row: NDArray[np.int64],
    questions: NDArray[np.float32],
    known: NDArray[np.int64],
    numbers: NDArray[np.float64],
) -> int:
    """Replay questions (`asked`: ASKED rows by time) and ACKs as they interleaved."""
    heard, count = 0, 0
    for i in range(len(asked)):
        row = asked[i]
        while heard < len(acks) and acks[heard].t_ack <= row.t:
            if note_ack(track, acks[heard], tokens[count]):
                token_row[count] = heard
                numbers[count, 2] = acks[heard].t_ack - acks[heard].t_send - track[0].min_rtt
                count += 1
            heard += 1
        low = row.low == 1
        pose(track, low, row.t, row.inflight, questions[i])
        known[i] = count
        numbers[i, 0] = max(row.t_ack - row.t - track[0].min_rtt, 0.0)
        numbers[i, 1] = track[0].delay_l if low else track[0].delay_c
    return count


def sent_questions(acks: NDArray[Any]) -> NDArray[Any]:
    """The question that every packet of a log answers about itself, in send order."""
    rows = acks[np.argsort(acks["t_send"], kind="stable")]
    asked = np.zeros(len(rows), ASKED)
    asked["t"], asked["t_ack"], asked["inflight"] = rows["t_send"], rows["t_ack"], rows["inflight"]
    asked["low"] = rows["sent_ecn"] == ECT1
    return asked


def featurise(acks: NDArray[Any], asked: NDArray[Any] | None = None) -> Samples:
    """What a sender could have learned from one flow's log, and been asked.

    `acks` are LOG rows of one flow in order of ACK arrival; `asked` are ASKED rows in order of
    time, by default what the packets themselves tell.
    """
    if asked is None:
        asked = sent_questions(acks)
    size = max(len(acks), len(asked)) + 1
    tokens = np.zeros((len(acks) + 1, NUM_FEATURES), np.float32)
    token_row = np.zeros(len(acks) + 1, np.int64)
    questions = np.zeros((len(asked), NUM_ASKED), np.float32)
    known = np.zeros(len(asked), np.int64)
    numbers = np.zeros((size, 3))
    count = _walk(new_track(), acks, asked, tokens, token_row, questions, known, numbers)
    rows = acks[token_row[:count]]
    return Samples(
        tokens=tokens[:count],
        token_t=rows["t_send"].copy(),
        token_delay=numbers[:count, 2].copy(),
        token_low=rows["sent_ecn"] == ECT1,
        questions=questions,
        asked_t=asked["t"].copy(),
        known=known,
        delay=numbers[: len(asked), 0].copy(),
        last=numbers[: len(asked), 1].copy(),
        low=asked["low"] == 1,
    )
