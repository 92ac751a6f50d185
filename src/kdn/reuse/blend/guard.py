"""The quality guard: now and then a blended answer's beginning is compared with a full prefill's.

    sampled ─> KL, same first token? ─> mean of the last few
        within the limit ─> nothing happens
        beyond it        ─> twice the ratio is tried beside it on the next few
            clearly better ─> that is the ratio from now on
            not better     ─> blending stops: the ratio becomes 1

More recomputed rows can make an answer worse, so the guard compares; it does not assume.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from kdn.core import Blend, Finish, Generator, Keeping, Request, Sampling, Token
from kdn.quality import GuardRecord
from kdn.reuse.blend.controller import Controller
from kdn.trace import Trace

__all__ = ["Guard", "GuardStat", "divergence"]

_ALTERNATIVES = 64
_WINDOW = 4
"""Comparisons that a judgement is made from."""
_BETTER = 0.9
"""A higher ratio must bring the mean KL below this share of the lower one's."""


@dataclass(frozen=True)
class GuardStat:
    """What the guard has seen since the start."""

    samples: int
    """Blended answers that were compared."""
    agreed: int
    """Those whose first token was that of a full prefill."""
    mean_kl: float
    """Over the last few, in nats; 0 when nothing was compared."""
    ratio: float
    """The least ratio in use; 1 means that blending was stopped."""


class Guard:
    """Samples, compares and moves the controller's floor. Safe from several threads."""

    def __init__(
        self,
        controller: Controller,
        every: int,
        kl_limit: float,
        trace: Trace,
        *,
        record: GuardRecord | None = None,
        keep: Callable[[GuardRecord], None] | None = None,
    ) -> None:
        """One in `every` requests is compared (0: none); `kl_limit` in nats.

        `record` is what an earlier run knew; `keep` is handed what this one knows, now and then.
        """
        known = record or GuardRecord()
        self._controller = controller
        self._every = every
        self._kl_limit = kl_limit
        self._trace = trace
        self._keep = keep
        self._lock = threading.Lock()
        self._asked, self._samples, self._agreed = known.asked, known.samples, known.agreed
        self._moved = known.ratio
        self._recent: deque[float] = deque(known.recent_kl, maxlen=_WINDOW)
        if self._moved is not None:
            controller.set_floor(self._moved)
        self._tried: deque[float] = deque(maxlen=_WINDOW)
        self._trial = False

    def wants(self, request: Request) -> bool:
        """Is this the one in so many? Requests with a ratio of their own are left alone."""
        if not self._every or request.blend is None or request.blend.ratio is not None:
            return False
        with self._lock:
            self._asked += 1
            due = self._asked % self._every == 0 and self._controller.floor < 1
        self._remember()
        return due

    def compare(self, request: Request, generator: Generator) -> None:
        """Run the prompt blended and in full, and draw the conclusion. Costs a full prefill."""
        floor, trial = self._controller.floor, self._trial
        full = _first(generator, request, None)
        now = _first(generator, request, Blend(floor))
        kl, agrees = divergence(full, now), _likeliest(full) == _likeliest(now)
        tried = _first(generator, request, Blend(_next(floor))) if trial else None
        with self._lock:
            self._samples += 1
            self._agreed += agrees
            self._recent.append(kl)
            if tried is not None:
                self._tried.append(divergence(full, tried))
            self._judge(floor)
        self._remember()
        self._trace.event("blend.guard", kl=kl, agrees=agrees, ratio=floor)

    def stat(self) -> GuardStat:
        """A look at the counts."""
        with self._lock:
            return GuardStat(self._samples, self._agreed, _mean(self._recent), self._floor())

    def check(self) -> None:
        """Audit the books. Raises AssertionError."""
        with self._lock:
            assert self._agreed <= self._samples <= self._asked, "more compared than asked"

    def _floor(self) -> float:
        return self._controller.floor

    def _remember(self) -> None:
        if self._keep is None:
            return
        with self._lock:
            record = GuardRecord(
                asked=self._asked,
                samples=self._samples,
                agreed=self._agreed,
                recent_kl=tuple(self._recent),
                ratio=self._moved,
            )
        self._keep(record)

    def _judge(self, floor: float) -> None:
        if len(self._recent) < _WINDOW or _mean(self._recent) <= self._kl_limit:
            self._trial = False
            self._tried.clear()
            return
        self._trial = True
        if len(self._tried) < _WINDOW:
            return
        better = _mean(self._tried) < _BETTER * _mean(self._recent)
        ratio = _next(floor) if better else 1.0
        self._moved = ratio
        self._controller.set_floor(ratio)
        self._trace.event("blend.ratio" if better else "blend.stop", ratio=ratio)
        self._recent.clear()
        self._tried.clear()
        self._trial = False


def divergence(full: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(full || other) in nats over the tokens that `full` lists, and all others as one.

    Both map token ids to log-probabilities.  A token that `other` does not list has at most its
    least listed one.  A lower bound of the KL over the whole vocabulary.
    """
    least = min(other.values())
    pairs = [(p, other.get(token, least)) for token, p in full.items()]
    inside = sum(math.exp(p) * (p - q) for p, q in pairs)
    rest_p = max(1.0 - sum(math.exp(p) for p, _ in pairs), 1e-9)
    rest_q = max(1.0 - sum(math.exp(q) for _, q in pairs), 1e-9)
    return max(inside + rest_p * math.log(rest_p / rest_q), 0.0)


def _first(generator: Generator, request: Request, blend: Blend | None) -> dict[int, float]:
    """Log-probabilities of the likeliest first tokens."""
    asked = replace(
        request,
        id=f"guard-{uuid.uuid4().hex[:8]}",
        sampling=Sampling(max_tokens=1, logprobs=_ALTERNATIVES, ignore_eos=True),
        blend=blend,
        keeping=Keeping.NOTHING,
    )
    for event in generator.submit(asked):
        if isinstance(event, Token):
            return {one.token_id: one.logprob for one in event.alternatives}
        assert isinstance(event, Finish), "a stream holds tokens and a finish"
    raise AssertionError("one token was asked for")


def _likeliest(logprobs: Mapping[int, float]) -> int:
    return max(logprobs, key=lambda token: logprobs[token])


def _next(ratio: float) -> float:
    return min(max(2 * ratio, 0.05), 1.0)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
