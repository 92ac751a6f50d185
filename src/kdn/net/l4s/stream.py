"""The predictor as a sender runs it: compiled, one token per ACK, two questions per decision.

A history token looks back only, so its keys and values never change: they are computed when its
ACK arrives and kept in a ring of `WINDOW`.  A decision then costs two questions, whatever the
window.  Equal to `transformer.Predictor` up to rounding (tests hold it to 1e-4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.tokens import (
    NUM_ASKED,
    NUM_FEATURES,
    WINDOW,
    Samples,
    new_track,
    note_ack,
    pose,
    unsquash,
)
from kdn.net.world.compiled import compiled, compiled_fast
from kdn.net.world.records import MS, Rows

__all__ = [
    "DIM",
    "FEED",
    "OUTPUTS",
    "Forecast",
    "PacketStream",
    "newest_delay",
    "num_weights",
    "replay",
]

DIM = 64
FEED = 256
OUTPUTS = 5
_HALF = DIM // 2
_RATES = (2 * np.pi / np.geomspace(1.0, 4000.0, _HALF)).astype(np.float64)
_SCALE = np.float32(DIM**-0.5)

Floats = NDArray[np.float32]


class _Memory(NamedTuple):
    """Rings of rotated keys and of values, [layers, WINDOW, DIM], and the track."""

    keys: Floats
    values: Floats
    track: Rows
    heard: NDArray[np.int64]


def _new_memory() -> _Memory:
    rings = np.zeros((2, WINDOW, DIM), np.float32), np.zeros((2, WINDOW, DIM), np.float32)
    return _Memory(*rings, new_track(), np.zeros(1, np.int64))


class _Layer(NamedTuple):
    norm1_g: Floats
    norm1_b: Floats
    q_w: Floats
    k_w: Floats
    v_w: Floats
    o_w: Floats
    norm2_g: Floats
    norm2_b: Floats
    up_w: Floats
    up_b: Floats
    down_w: Floats
    down_b: Floats


class _Weights(NamedTuple):
    token_w: Floats
    token_b: Floats
    ask_w: Floats
    ask_b: Floats
    first: _Layer
    second: _Layer
    norm_g: Floats
    norm_b: Floats
    out_w: Floats
    out_b: Floats


_SHAPES_IN = ((NUM_FEATURES, DIM), (DIM,), (NUM_ASKED, DIM), (DIM,))
_SHAPES_LAYER = (
    ((DIM,), (DIM,))
    + ((DIM, DIM),) * 4
    + ((DIM,), (DIM,), (DIM, FEED), (FEED,), (FEED, DIM), (DIM,))
)
_SHAPES_OUT = ((DIM,), (DIM,), (DIM, OUTPUTS), (OUTPUTS,))


def num_weights() -> int:
    """How many numbers a weight vector holds."""
    shapes = _SHAPES_IN + 2 * _SHAPES_LAYER + _SHAPES_OUT
    return sum(int(np.prod(shape)) for shape in shapes)


def _split(flat: Floats) -> _Weights:
    """Name the parts of a weight vector, without copying. Raises ValueError for another length."""
    if len(flat) != num_weights():
        raise ValueError(f"weights hold {len(flat)} numbers, the predictor has {num_weights()}")
    place = 0

    def take(shapes: tuple[tuple[int, ...], ...]) -> list[Floats]:
        nonlocal place
        parts = []
        for shape in shapes:
            size = int(np.prod(shape))
            parts.append(np.ascontiguousarray(flat[place : place + size].reshape(shape)))
            place += size
        return parts

    token_w, token_b, ask_w, ask_b = take(_SHAPES_IN)
    first, second = _Layer(*take(_SHAPES_LAYER)), _Layer(*take(_SHAPES_LAYER))
    norm_g, norm_b, out_w, out_b = take(_SHAPES_OUT)
    return _Weights(token_w, token_b, ask_w, ask_b, first, second, norm_g, norm_b, out_w, out_b)


@compiled_fast
def _times(x: Floats, w: Floats, y: Floats) -> None:
    """y += x @ w, a row of `w` at a time so that the inner loop is a vector's."""
    for i in range(len(x)):
        a = x[i]
        for j in range(w.shape[1]):
            y[j] += a * w[i, j]


@compiled_fast
def _norm(x: Floats, gain: Floats, bias: Floats, y: Floats) -> None:
    mean = np.float32(0.0)
    for i in range(DIM):
        mean += x[i]
    mean /= np.float32(DIM)
    var = np.float32(0.0)
    for i in range(DIM):
        var += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1.0) / np.sqrt(var / np.float32(DIM) + np.float32(1e-5))
    for i in range(DIM):
        y[i] = (x[i] - mean) * scale * gain[i] + bias[i]


@compiled_fast
def _turn(x: Floats, cos: Floats, sin: Floats) -> None:
    for i in range(_HALF):
        a, b = x[i], x[i + _HALF]
        x[i] = a * cos[i] - b * sin[i]
        x[i + _HALF] = a * sin[i] + b * cos[i]


@compiled
def _angles(t_ns: int, cos: Floats, sin: Floats) -> None:
    for i in range(_HALF):
        angle = _RATES[i] * (t_ns / MS)
        cos[i], sin[i] = np.cos(angle), np.sin(angle)


@compiled_fast
def _attend(q: Floats, keys: Floats, values: Floats, count: int, y: Floats) -> None:
    """y += softmax(q . keys) @ values over the first `count` rows of the ring."""
    weights = np.empty(WINDOW, np.float32)
    top = np.float32(-1e30)
    for j in range(count):
        score = np.float32(0.0)
        for i in range(DIM):
            score += q[i] * keys[j, i]
        weights[j] = score * _SCALE
        top = max(top, weights[j])
    total = np.float32(0.0)
    for j in range(count):
        weights[j] = np.exp(weights[j] - top)
        total += weights[j]
    for j in range(count):
        share = weights[j] / total
        for i in range(DIM):
            y[i] += share * values[j, i]


@compiled_fast
def _feed(x: Floats, w: _Layer) -> None:
    h = np.empty(DIM, np.float32)
    _norm(x, w.norm2_g, w.norm2_b, h)
    up = w.up_b.copy()
    _times(h, w.up_w, up)
    for i in range(FEED):
        up[i] = max(up[i], np.float32(0.0))
    for i in range(DIM):
        x[i] += w.down_b[i]
    _times(up, w.down_w, x)


@compiled_fast
def _look(x: Floats, memory: _Memory, layer: int, w: _Layer, cos: Floats, sin: Floats) -> None:
    """x += attention over the ring, then the feed-forward part."""
    h = np.empty(DIM, np.float32)
    _norm(x, w.norm1_g, w.norm1_b, h)
    q = np.zeros(DIM, np.float32)
    _times(h, w.q_w, q)
    _turn(q, cos, sin)
    seen = np.zeros(DIM, np.float32)
    count = min(memory.heard[0], WINDOW)
    _attend(q, memory.keys[layer], memory.values[layer], count, seen)
    _times(seen, w.o_w, x)
    _feed(x, w)


@compiled_fast
def _keep(x: Floats, memory: _Memory, layer: int, w: _Layer, cos: Floats, sin: Floats) -> None:
    """Write the token's key and value into the ring's next row."""
    h = np.empty(DIM, np.float32)
    _norm(x, w.norm1_g, w.norm1_b, h)
    row = memory.heard[0] % WINDOW
    key, value = memory.keys[layer, row], memory.values[layer, row]
    key[:] = np.float32(0.0)
    value[:] = np.float32(0.0)
    _times(h, w.k_w, key)
    _turn(key, cos, sin)
    _times(h, w.v_w, value)


@compiled_fast
def _hear(token: Floats, t_send: int, memory: _Memory, w: _Weights) -> None:
    cos, sin = np.empty(_HALF, np.float32), np.empty(_HALF, np.float32)
    _angles(t_send, cos, sin)
    x = w.token_b.copy()
    _times(token, w.token_w, x)
    _keep(x, memory, 0, w.first, cos, sin)
    memory.heard[0] += 1  # the first layer sees the token itself
    _look(x, memory, 0, w.first, cos, sin)
    memory.heard[0] -= 1
    _keep(x, memory, 1, w.second, cos, sin)
    memory.heard[0] += 1


@compiled
def _hear_all(acks: Rows, memory: _Memory, w: _Weights) -> None:
    """Take note of ACKs, oldest first; those that make a token enter the rings."""
    token = np.zeros(NUM_FEATURES, np.float32)
    for i in range(len(acks)):
        if note_ack(memory.track, acks[i], token):
            _hear(token, acks[i].t_send, memory, w)


@compiled_fast
def _answer(question: Floats, now: int, memory: _Memory, w: _Weights, out: Floats) -> None:
    cos, sin = np.empty(_HALF, np.float32), np.empty(_HALF, np.float32)
    _angles(now, cos, sin)
    y = w.ask_b.copy()
    _times(question, w.ask_w, y)
    _look(y, memory, 0, w.first, cos, sin)
    _look(y, memory, 1, w.second, cos, sin)
    h = np.empty(DIM, np.float32)
    _norm(y, w.norm_g, w.norm_b, h)
    out[:] = w.out_b
    _times(h, w.out_w, out)


@compiled
def _ask(memory: _Memory, w: _Weights, now: int, inflight: int, out: Floats) -> None:
    """Both questions: out [2, 6] for L and C, the last column the newest squashed delay."""
    question = np.empty(NUM_ASKED, np.float32)
    for i in range(2):
        newest = pose(memory.track, i == 0, now, inflight, question)
        _answer(question, now, memory, w, out[i, :OUTPUTS])
        out[i, OUTPUTS] = newest


@compiled
def _replay(
    tokens: Floats,
    token_t: NDArray[np.int64],
    questions: Floats,
    asked_t: NDArray[np.int64],
    known: NDArray[np.int64],
    memory: _Memory,
    w: _Weights,
    out: Floats,
) -> None:
    """Answer every question of a recorded flow when it was asked, [S, 5] into `out`."""
    heard = 0
    for i in range(len(known)):
        while heard < known[i]:
            _hear(tokens[heard], token_t[heard], memory, w)
            heard += 1
        _answer(questions[i], asked_t[i], memory, w, out[i])


def replay(weights: Floats, samples: Samples) -> Floats:
    """[S, 5] the network's answers to all of a flow's questions."""
    out = np.zeros((len(samples.known), OUTPUTS), np.float32)
    s = samples
    _replay(
        s.tokens, s.token_t, s.questions, s.asked_t, s.known, _new_memory(), _split(weights), out
    )
    return out


@dataclass(frozen=True)
class Forecast:
    """One queue's next delay, in ns above the path's minimum."""

    median: float
    p99: float


class PacketStream:
    """The predictor's running state for one flow. Weights may be exchanged at any time."""

    def __init__(self, weights: Floats) -> None:
        self._weights = _split(weights)
        self._memory = _new_memory()
        self._out = np.zeros((2, OUTPUTS + 1), np.float32)

    @property
    def num_tokens(self) -> int:
        """Tokens heard since the start."""
        return int(self._memory.heard[0])

    @property
    def track(self) -> Any:
        """The flow's TRACK row."""
        return self._memory.track[0]

    def exchange(self, weights: Floats) -> None:
        """Use other weights from now on; the rings fill with new keys as ACKs arrive."""
        self._weights = _split(weights)

    def hear(self, acks: NDArray[Any]) -> None:
        """Take in LOG rows of this flow, in order of arrival."""
        _hear_all(acks, self._memory, self._weights)

    def raw(self, now_ns: int, inflight: int) -> Floats:
        """[2, 6] answers for L and C as the network gives them; overwritten by the next call."""
        _ask(self._memory, self._weights, now_ns, inflight, self._out)
        return self._out

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        """(L, C): what a packet sent now would meet."""
        out = self.raw(now_ns, inflight)
        return _forecast(out[0]), _forecast(out[1])


def _forecast(out: Floats) -> Forecast:
    newest = float(out[OUTPUTS])
    p90 = max(float(out[3]), float(out[2]))  # quantiles do not cross
    return Forecast(
        median=unsquash(newest + float(out[2])),
        p99=unsquash(newest + max(float(out[4]), p90)),
    )


def newest_delay(track: Rows, low: bool) -> float:
    """The newest known delay (ns) of a queue: what `last value` predicts."""
    return float(track["delay_l"] if low else track["delay_c"])
