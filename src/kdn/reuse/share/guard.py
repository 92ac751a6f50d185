"""The guard of sharing: some shared answers are compared with the model's own prefill, by their first token.

A receiver whose last comparisons are worse than the limit shares no more until the process ends.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from kdn.core import Blend, Fingerprint, Generator, Request, Share
from kdn.errors import EngineFailed
from kdn.reuse.blend.guard import divergence, first_logprobs, guarding
from kdn.trace import Trace

__all__ = ["ShareGuard"]

_OWN = 128
"""So many of its own requests are remembered: they are no samples."""
_SHARED = 1024
"""So many requests that shared are remembered until the engine is idle."""
_RECENT, _FEWEST = 8, 4
"""A mean is over the last so many comparisons; fewer than so many decide nothing."""


class ShareGuard:
    """Samples and compares shared answers. Safe from several threads."""

    def __init__(
        self,
        every: int,
        kl_limit: float,
        fingerprint: Callable[[str | None], Fingerprint],
        trace: Trace,
    ) -> None:
        """One in `every` shared requests is compared (0: none); `kl_limit` in nats."""
        self._every, self._limit, self._fingerprint = every, kl_limit, fingerprint
        self._trace = trace
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}
        self._recent: dict[str, deque[float]] = {}
        self._stopped: set[str] = set()
        self._own: deque[str] = deque(maxlen=_OWN)
        self._shared: deque[str] = deque(maxlen=_SHARED)

    def note(self, request: Request) -> None:
        """The request was planned over a sibling's KV: only such ones are samples."""
        self._shared.append(request.id)

    def trusts(self, receiver: Fingerprint) -> bool:
        """May this receiver go on sharing?"""
        with self._lock:
            return receiver not in self._stopped

    def wants(self, request: Request) -> bool:
        """Is this the one in so many of those that shared?"""
        if not self._every or request.option(Blend) is not None or request.id in self._own:
            return False
        if request.id not in self._shared:
            return False
        receiver = self._fingerprint(request.adapter)
        with self._lock:
            asked = self._asked[receiver] = self._asked.get(receiver, 0) + 1
        return asked % self._every == 0 or asked == 1

    def compare(self, request: Request, generator: Generator) -> None:
        """Run the prompt shared and in full, and draw the conclusion. Costs a full prefill.

        A request that shares nothing by now is no sample.  Raises KdnError when an answer fails.
        """
        shared, num_shared = self._first(generator, request)
        if not num_shared:
            return
        full, _ = self._first(generator, replace(request.using(Share("exact")), reuse=False))
        kl = divergence(full, shared)
        if math.isnan(kl):
            raise EngineFailed(f"{request.id}: the model's probabilities are no numbers")
        receiver = self._fingerprint(request.adapter)
        with self._lock:
            recent = self._recent.setdefault(receiver, deque(maxlen=_RECENT))
            recent.append(kl)
            mean = sum(recent) / len(recent)
            if len(recent) >= _FEWEST and mean > self._limit:
                self._stopped.add(receiver)
        self._trace.event("share.guard", kl=kl, mean=mean, trusted=receiver not in self._stopped)

    def _first(self, generator: Generator, request: Request) -> tuple[dict[int, float], int]:
        """Log-probabilities of the likeliest first tokens, and how many tokens were shared."""
        asked = guarding(request)
        self._own.append(asked.id)
        found, usage = first_logprobs(generator, asked)
        return found, usage.shared
