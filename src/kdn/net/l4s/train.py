"""Training: flows cut into chunks of tokens with the questions asked meanwhile, and AdamW."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdn.machine.files import READABLE, publish_made
from kdn.net.l4s.choosers import read_weights
from kdn.net.l4s.collect import collect
from kdn.net.l4s.loss import loss_of
from kdn.net.l4s.lstm import Lstm
from kdn.net.l4s.tokens import NUM_ASKED, NUM_FEATURES, WINDOW, Samples
from kdn.net.l4s.transformer import OUTPUTS, Predictor, pack, unpack
from kdn.net.world.records import MS

__all__ = ["Training", "TrainingBatch", "draw_batch", "make", "train"]


@dataclass(frozen=True)
class Training:
    """How long and how hard. `docs/net.md` says what made the packaged weights."""

    num_flows: int = 100
    seconds: float = 10.0
    steps: int = 4000
    batch: int = 8
    tokens: int = 256
    questions: int = 256
    rate: float = 1.5e-3
    seed: int = 1


@dataclass(frozen=True)
class TrainingBatch:
    """Chunks of flows as tensors: [B, T, ...] tokens and [B, Q, ...] questions."""

    tokens: Tensor
    token_ms: Tensor
    questions: Tensor
    asked_ms: Tensor
    known: Tensor
    delay_ms: Tensor
    last_ms: Tensor
    valid: Tensor


def draw_batch(
    flows: Sequence[Samples], config: Training, random: np.random.Generator
) -> TrainingBatch:
    """Random chunks, each with random questions whose whole visible history lies in the chunk."""
    size, asked = config.tokens, config.questions
    tokens = np.zeros((config.batch, size, NUM_FEATURES), np.float32)
    questions = np.zeros((config.batch, asked, NUM_ASKED), np.float32)
    numbers = np.zeros((6, config.batch, asked))
    token_ms = np.zeros((config.batch, size))
    for b in range(config.batch):
        flow = flows[int(random.integers(len(flows)))]
        start = int(random.integers(max(len(flow.tokens) - size, 1)))
        stop = min(start + size, len(flow.tokens))
        first = int(np.searchsorted(flow.known, start + WINDOW // 2))
        last = int(np.searchsorted(flow.known, stop, side="right"))
        rows = _sample(first, last, asked, random)
        zero = int(flow.token_t[start])
        tokens[b, : stop - start] = flow.tokens[start:stop]
        token_ms[b, : stop - start] = (flow.token_t[start:stop] - zero) / MS
        questions[b, : len(rows)] = flow.questions[rows]
        numbers[0, b, : len(rows)] = (flow.asked_t[rows] - zero) / MS
        numbers[1, b, : len(rows)] = flow.known[rows] - start
        numbers[2, b, : len(rows)] = flow.delay[rows] / MS
        numbers[3, b, : len(rows)] = flow.last[rows] / MS
        numbers[4, b, : len(rows)] = 1.0
        numbers[1, b, len(rows) :] = WINDOW
    t = torch.from_numpy
    return TrainingBatch(
        tokens=t(tokens),
        token_ms=t(token_ms),
        questions=t(questions),
        asked_ms=t(numbers[0]),
        known=t(numbers[1]).long(),
        delay_ms=t(numbers[2]).float(),
        last_ms=t(numbers[3]).float(),
        valid=t(numbers[4]) > 0,
    )


def _sample(first: int, last: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    if last - first <= count:
        return np.arange(first, max(last, first))
    return np.sort(random.choice(np.arange(first, last), count, replace=False))


def predict_batch(model: Predictor | Lstm, batch: TrainingBatch) -> Tensor:
    """The model's answers [B, Q, 5]."""
    out: Tensor = model(batch.tokens, batch.token_ms, batch.questions, batch.asked_ms, batch.known)
    assert out.shape[-1] == OUTPUTS
    return out


def train(
    flows: Sequence[Samples],
    config: Training,
    model: Predictor | Lstm,
    tick: Callable[[int, float], None] | None = None,
) -> None:
    """Fit `model` in place by `config.steps` steps; `tick` hears each step and its loss."""
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.rate, total_steps=config.steps + 1, pct_start=0.05
    )
    for step in range(config.steps):
        batch = draw_batch(flows, config, random)
        loss = loss_of(predict_batch(model, batch), batch.delay_ms, batch.last_ms, batch.valid)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if tick is not None:
            tick(step, float(loss.detach()))


def make(
    out: Path,
    config: Training,
    start: Path | None,
    lstm: bool,
    simulated: Callable[[int], None],
    learned: Callable[[int], None],
) -> float:
    """Collect, train, write the weights to `out`; returns the mean loss of the last 100 steps.

    With `start` its predictor decides in most collected flows and is where training begins.
    Raises WeightsError when `start` is not a weight vector of this predictor.
    """
    deciding = None if start is None else read_weights(start)
    flows = collect(config.num_flows, config.seconds, 0, deciding, simulated)
    model: Predictor | Lstm = Lstm() if lstm else Predictor()
    if deciding is not None and isinstance(model, Predictor):
        unpack(deciding, model)
    losses: list[float] = []

    def tick(step: int, loss: float) -> None:
        losses.append(loss)
        learned(step + 1)

    train(flows, config, model, tick)
    file = io.BytesIO()
    if isinstance(model, Predictor):
        np.save(file, pack(model), allow_pickle=False)
    else:
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        np.savez(file, allow_pickle=False, **state)
    publish_made(out, file.getvalue(), READABLE)
    return float(np.mean(losses[-100:]))
