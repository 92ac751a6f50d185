"""The quality guard: some blended answers are compared with full prefills, by their first token.

    sampled ─> KL, same first token? ─> mean of the last few of that tenant's collection
        within the limit ─> nothing happens
        beyond it        ─> twice the ratio is tried beside it on the next few
            clearly better ─> that is the collection's ratio from now on
            not better     ─> blending stops for the collection: its ratio becomes 1

More recomputed rows can make an answer worse, so the guard compares; it does not assume.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from kdn.core import (
    EXACT,
    Blend,
    Generator,
    Recipe,
    Request,
    Retention,
    Sampling,
    Share,
    Token,
    Usage,
)
from kdn.errors import EngineFailed
from kdn.reuse.blend.controller import RatioController
from kdn.reuse.blend.judged import JudgedCollections
from kdn.reuse.blend.monitor import CollectionMonitor, GuardStat, next_ratio
from kdn.reuse.blend.record import GuardRecord
from kdn.trace import Trace

__all__ = ["GuardStat", "QualityGuard", "divergence", "first_logprobs", "guarding"]

_ALTERNATIVES = 64
_LEAST = -100.0
"""The least log-probability that is counted: one impossible token must not make a mean infinite."""


class QualityGuard:
    """Samples, compares and moves the controller's floors. Safe from several threads."""

    def __init__(
        self,
        controller: RatioController,
        every: int,
        kl_limit: float,
        trace: Trace,
        *,
        records: Mapping[str, Mapping[str, GuardRecord]] | None = None,
        keep: Callable[[str, str, GuardRecord | None], None] = lambda *_: None,
        recipe: Callable[[Request], Recipe] = lambda _: EXACT,
    ) -> None:
        """One in `every` requests of a collection is compared (0: none); `kl_limit` in nats.

        `records`, by salt and collection, are what an earlier run measured; `keep` is given this
        run's after every change, and None for what is let go.  A request whose documents are of a
        tainted `recipe` is not compared: a full prefill would read other ones.
        """
        self._controller = controller
        self._every = every
        self._kl_limit = kl_limit
        self._trace = trace
        self._keep = keep
        self._recipe = recipe
        self._lock = threading.Lock()
        self._judged = JudgedCollections(controller.floor())
        for salt, own in (records or {}).items():
            for name, record in own.items():
                self._use(salt, name, record)

    def wants(self, request: Request) -> bool:
        """Is this the one in so many? Requests with a ratio of their own are left alone."""
        blend = request.option(Blend)
        if not self._every or blend is None or blend.ratio is not None:
            return False
        if self._recipe(request).tainted:
            return False
        with self._lock:
            monitor = self._use(request.salt, blend.collection)
            due = monitor.asked(self._every)
            record = monitor.record()
        self._keep(request.salt, blend.collection, record)
        return due

    def compare(self, request: Request, generator: Generator) -> None:
        """Run the prompt blended and in full, and draw the conclusion. Costs a full prefill.

        Raises KdnError, and concludes nothing, when an answer fails or holds no numbers.
        """
        blend = request.option(Blend)
        assert blend is not None, "only blended requests are compared"
        salt, name = request.salt, blend.collection
        with self._lock:
            monitor = self._use(salt, name)
            ratio, trial = monitor.ratio, monitor.trial
        full = _first(generator, request, None)
        now = _first(generator, request, Blend(ratio))
        tried = _first(generator, request, Blend(next_ratio(ratio))) if trial else None
        kl, agrees = divergence(full, now), _likeliest(full) == _likeliest(now)
        tried_kl = None if tried is None else divergence(full, tried)
        if math.isnan(kl) or (tried_kl is not None and math.isnan(tried_kl)):
            raise EngineFailed(f"{request.id}: the model's probabilities are no numbers")
        with self._lock:
            if (
                self._use(salt, name) is not monitor
            ):  # let go meanwhile: nobody reads the conclusion
                return
            changed = monitor.saw(kl, agreed=agrees, tried_kl=tried_kl, limit=self._kl_limit)
            self._controller.set_floor(monitor.ratio, name, salt)
            record = monitor.record()
        if changed is not None:
            self._trace.event(f"blend.{changed}", ratio=monitor.ratio, collection=name)
        self._keep(salt, name, record)
        self._trace.event("blend.guard", kl=kl, agrees=agrees, ratio=ratio, collection=name)

    def stats(self, salt: str = "") -> dict[str, GuardStat]:
        """One tenant's counts so far, by collection; "" stands for requests that name none."""
        return {name: stat for (owner, name), stat in self.all_stats().items() if owner == salt}

    def all_stats(self) -> dict[tuple[str, str], GuardStat]:
        """The counts so far, by salt and collection: names that tenants keep from each other."""
        with self._lock:
            return {(salt, name): monitor.stat() for salt, name, monitor in self._judged}

    def check(self) -> None:
        """Check that monitors and floors agree. Raises AssertionError."""
        with self._lock:
            for salt, name, monitor in self._judged:
                monitor.check()
                assert self._controller.floor(name, salt) == monitor.ratio, (
                    "a floor differs from its monitor's"
                )

    def _use(self, salt: str, name: str, record: GuardRecord | None = None) -> CollectionMonitor:
        """The collection's monitor; what that makes too many is let go."""
        monitor = self._judged.use(salt, name, record)
        self._controller.set_floor(monitor.ratio, name, salt)
        while (gone := self._judged.let_go()) is not None:
            self._controller.forget(gone[1], gone[0])
            self._keep(*gone, None)
        return monitor


def divergence(full: Mapping[int, float], other: Mapping[int, float]) -> float:
    """KL(full || other) in nats over the tokens that `full` lists, and all others as one.

    Both map token ids to log-probabilities.  A token that `other` does not list has at most its
    least listed one.  A lower bound of the KL over the whole vocabulary.
    """
    least = min(other.values(), default=_LEAST)
    listed = [(token, p) for token, p in full.items() if p != -math.inf]
    pairs = [(p, max(other.get(token, least), _LEAST)) for token, p in listed]
    inside = sum(math.exp(p) * (p - q) for p, q in pairs)
    rest_p = max(1.0 - sum(math.exp(p) for p, _ in pairs), 1e-9)
    rest_q = max(1.0 - sum(math.exp(q) for _, q in pairs), 1e-9)
    return max(inside + rest_p * math.log(rest_p / rest_q), 0.0)


def guarding(request: Request) -> Request:
    """The request as a guard asks it: one token with its alternatives, alone, under a name of its own."""
    return replace(
        request.alone(),
        id=f"guard-{uuid.uuid4().hex[:8]}",
        sampling=Sampling(max_tokens=1, logprobs=_ALTERNATIVES, ignore_eos=True),
        retention=Retention.NOTHING,
    )


def first_logprobs(generator: Generator, asked: Request) -> tuple[dict[int, float], Usage]:
    """Log-probabilities of the likeliest first tokens, and the usage. Raises EngineFailed without any."""
    found: dict[int, float] = {}
    for event in generator.submit(asked):
        if isinstance(event, Token):
            found = {one.token_id: one.logprob for one in event.alternatives}
        elif found:
            return found, event.usage
    raise EngineFailed(f"{asked.id} ended without a token")


def _first(generator: Generator, request: Request, blend: Blend | None) -> dict[int, float]:
    """Without `blend` in full: over no stored KV, and over no sibling's."""
    if blend is None:
        asked = replace(request.without(Blend).using(Share("exact")), reuse=False)
    else:
        asked = request.using(blend)
    return first_logprobs(generator, guarding(asked))[0]


def _likeliest(logprobs: Mapping[int, float]) -> int:
    return max(logprobs, key=lambda token: logprobs[token])
