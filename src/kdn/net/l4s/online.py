"""Learning while sending: a copy of the predictor is tuned in the background, and kept if better.

Every `every` tokens one AdamW step is taken on the newest ACKs; the step stands only if the
error on the newest questions, which the step has not seen, has not grown by over 5 %.  The
sender's own weights change by one exchange, never in place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kdn.net.l4s.loss import loss_of
from kdn.net.l4s.stream import Forecast, PacketStream, replay
from kdn.net.l4s.tokens import Samples, featurise
from kdn.net.l4s.train import Training, draw_batch, predict_batch
from kdn.net.l4s.transformer import Predictor, pack, unpack
from kdn.net.world.records import LOG, MS

__all__ = ["AtOnce", "OnlineConfig", "OnlineStream", "Tuned", "first_part", "tune"]


T = TypeVar("T")


@dataclass(frozen=True)
class OnlineConfig:
    """How often, how hard, and when to go back."""

    every: int = 256
    """ACKs between two steps."""
    keep: int = 2048
    """ACKs that a step learns from."""
    held_out: int = 256
    rate: float = 1e-4
    batch: int = 2
    tolerance: float = 0.05
    seed: int = 1


@dataclass(frozen=True)
class Tuned:
    """What became of a step: the weights to use from now on."""

    weights: NDArray[np.float32]
    accepted: bool


def tune(weights: NDArray[np.float32], acks: NDArray[Any], config: OnlineConfig) -> Tuned:
    """One step from `weights` on all of `acks` but the newest, which judge it.

    `acks` are LOG rows of one flow, oldest first, at least twice `held_out`.
    """
    samples = featurise(acks)
    cut = len(samples.questions) - config.held_out
    model = Predictor()
    unpack(weights, model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate)
    setting = Training(batch=config.batch, tokens=256, questions=128)
    random = np.random.default_rng(config.seed + int(acks["t_ack"][-1]))
    batch = draw_batch([first_part(samples, cut)], setting, random)
    loss = loss_of(predict_batch(model, batch), batch.delay_ms, batch.last_ms, batch.valid)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    after = pack(model)
    before_ms, after_ms = (_held_out_error(w, samples, cut) for w in (weights, after))
    accepted = after_ms <= before_ms * (1 + config.tolerance)
    return Tuned(after if accepted else weights, accepted)


def first_part(samples: Samples, cut: int) -> Samples:
    """The questions before `cut`, with the tokens known by then."""
    known = int(samples.known[cut])
    return Samples(
        tokens=samples.tokens[:known],
        token_t=samples.token_t[:known],
        token_delay=samples.token_delay[:known],
        token_low=samples.token_low[:known],
        questions=samples.questions[:cut],
        asked_t=samples.asked_t[:cut],
        known=samples.known[:cut],
        delay=samples.delay[:cut],
        last=samples.last[:cut],
        low=samples.low[:cut],
    )


def _held_out_error(weights: NDArray[np.float32], samples: Samples, cut: int) -> float:
    change = replay(weights, samples)[cut:, 2]
    guess = np.sinh(np.clip(change + np.arcsinh(samples.last[cut:] / MS), 0.0, 9.0))
    return float(np.abs(guess - samples.delay[cut:] / MS).mean())


class AtOnce(Executor):
    """Does the work when it is handed in: a step then takes no simulated time, and runs repeat."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future that is already done."""
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (a future carries whatever was raised)
            done.set_exception(error)
        return done


class OnlineStream:
    """A `PacketStream` that tunes its weights as ACKs come, on a thread of its own.

    Pass an executor that runs immediately for repeatable simulations; `close` ends the thread.
    """

    def __init__(
        self,
        weights: NDArray[np.float32],
        config: OnlineConfig = OnlineConfig(),
        executor: Executor | None = None,
    ) -> None:
        self._weights, self._config = weights, config
        self._stream = PacketStream(weights)
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="kdn-l4s-tune")
        self._recent = np.zeros(0, LOG)
        self._since = 0
        self._running: Future[Tuned] | None = None
        self.accepted = 0
        self.rejected = 0

    @property
    def num_tokens(self) -> int:
        return self._stream.num_tokens

    @property
    def track(self) -> Any:
        """The flow's TRACK row."""
        return self._stream.track

    def hear(self, acks: NDArray[Any]) -> None:
        """As `PacketStream.hear`; takes over finished steps and starts new ones."""
        self._stream.hear(acks)
        if len(acks):
            self._recent = np.concatenate((self._recent, acks))[-self._config.keep :]
            self._since += len(acks)
        self._take_over()
        enough = len(self._recent) >= 2 * self._config.held_out
        if self._running is None and enough and self._since >= self._config.every:
            self._since = 0
            self._running = self._executor.submit(
                tune, self._weights, self._recent.copy(), self._config
            )

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        """(L, C) by the newest weights that were kept."""
        return self._stream.ask(now_ns, inflight)

    def close(self) -> None:
        """Wait for the step that is running, take it over, and end the thread."""
        self._executor.shutdown()
        self._take_over()

    def _take_over(self) -> None:
        if self._running is None or not self._running.done():
            return
        tuned = self._running.result()
        self._running = None
        if tuned.accepted:
            self._weights = tuned.weights
            self._stream.exchange(tuned.weights)
            self.accepted += 1
        else:
            self.rejected += 1
