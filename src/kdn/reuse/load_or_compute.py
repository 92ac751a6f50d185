"""Load or recompute: what both take, and for each request how much of what is stored is worth fetching."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable
from math import inf

from kdn.store.index.index import Match
from kdn.trace import Value

__all__ = ["EstimateS", "MeasuredSpeeds", "worth_loading"]

NEARLY = 1.01
_REMEMBERED = 16
"""Measurements that count; older ones may be of another load on the machine."""
_FEWEST_TOKENS = 256
"""Shorter prefills say more about overheads than about speed."""
EstimateS = Callable[[int, int], float]
"""estimate_s(new, cached): seconds to prefill `new` tokens after `cached` ones that are loaded."""


def worth_loading(
    match: Match,
    num_tokens: int,
    token_bytes: int,
    bytes_per_s: Callable[[str], float | None],
    estimate_s: EstimateS,
) -> Match:
    """The leading part of `match` with which a prompt of `num_tokens` is answered soonest.

    Layers are loaded while others are computed, so a choice takes as long as the longer of the two.
    A tier whose speed is not known yet counts as free: loading from it is how it gets known.
    Between choices that are nearly equal the one that computes least wins.
    """
    best, best_s = 0, estimate_s(num_tokens, 0)
    load_s, cached = 0.0, 0
    for count, hit in enumerate(match.hits, start=1):
        speed = bytes_per_s(hit.tier)
        is_known = speed is not None and 0 < speed < inf
        load_s += hit.id.num_tokens * token_bytes / speed if speed and is_known else 0.0
        cached += hit.num_tokens
        takes_s = max(load_s, estimate_s(num_tokens - cached, cached))
        if takes_s <= best_s * NEARLY:
            best, best_s = count, takes_s
    return match if best == len(match.hits) else Match(match.hits[:best])


class MeasuredSpeeds:
    """How quick loads and prefills have been in this process. Safe from several threads.

    As a trace listener it takes the speed of a prefill from answers that nothing was blended for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._byte_s: dict[str, deque[float]] = {}

    def load_s(self, tier: str, size_bytes: int) -> float:
        """Seconds to load so many bytes, as measured; 0 when nothing was."""
        with self._lock:
            known = self._byte_s.get(tier)
            return statistics.median(known) * size_bytes if known else 0.0

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds to compute so many tokens, as measured; 0 when nothing was."""
        with self._lock:
            return statistics.median(self._token_s) * num_tokens if self._token_s else 0.0

    def loaded(self, tier: str, size_bytes: int, seconds: float) -> None:
        """Take note of a load."""
        if _is_time(seconds):
            with self._lock:
                known = self._byte_s.setdefault(tier, deque(maxlen=_REMEMBERED))
                known.append(seconds / max(size_bytes, 1))

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Take note of a prefill that reused nothing."""
        if num_tokens >= _FEWEST_TOKENS and _is_time(seconds) and seconds > 0:
            with self._lock:
                self._token_s.append(seconds / num_tokens)

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: answers that began with a plain prefill are measurements of it."""
        if name != "engine.finish" or "ttft_ms" not in fields or fields.get("blended"):
            return
        computed = float(fields["prompt_tokens"] or 0) - float(fields["exact"] or 0)
        self.prefilled(int(computed), float(fields["ttft_ms"] or 0) / 1000)


def _is_time(seconds: float) -> bool:
    """Is it a duration? A clock that was set back, or a number that is none, measures nothing."""
    return 0 <= seconds < inf
