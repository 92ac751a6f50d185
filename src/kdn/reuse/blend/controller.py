"""How much to mend for the tier at hand: the loading controller (2405.16444, section 5.1).

Loading and recomputing run side by side, so the recompute that fits into the time of the load is
free.  What is measured decides; before anything was measured, the quality floor does.  Which tier
would hide a given recompute is a question of money (`kdn cost advise --blend`).
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from kdn.clock import Clock
from kdn.core import KvShape
from kdn.trace import Value

__all__ = ["Controller", "Stopwatch"]

_REMEMBERED = 16
"""Measurements that count; older ones may be of another load on the machine."""
_MOST_COLLECTIONS = 256
"""Those beyond are judged together with the requests that name none."""
_FEWEST_TOKENS = 256
"""Shorter prefills say more about overheads than about speed."""


class Controller:
    """Keeps measured speeds, and turns them into a ratio. Safe from several threads.

    It listens to the trace: an answered request tells how fast a prefill is.
    """

    def __init__(self, floor: float) -> None:
        """`floor` in 0..1 is the ratio that quality needs, however fast loading is."""
        self._lock = threading.Lock()
        self._floor = floor
        self._floors: dict[str, float] = {}
        self._token_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._byte_s: dict[str, deque[float]] = {}

    def floor(self, collection: str = "") -> float:
        """The least ratio in use for those documents; 1 means that they are not blended."""
        name = self.judged_as(collection)
        with self._lock:
            return self._floors.get(name, self._floor)

    def judged_as(self, collection: str) -> str:
        """The collection itself, or "" where there are too many to tell apart."""
        with self._lock:
            known = collection in self._floors or len(self._floors) < _MOST_COLLECTIONS
            return collection if known else ""

    def set_floor(self, floor: float, collection: str = "") -> None:
        """What the quality guard has found to be needed."""
        with self._lock:
            self._floors[collection] = min(max(floor, 0.0), 1.0)

    def ratio(
        self, tiers: Mapping[str, int], shape: KvShape, num_tokens: int, collection: str = ""
    ) -> float:
        """The larger of the floor and load time / prefill time, at most 1.

        `tiers` are the reused tokens by tier; `num_tokens` those of the prompt.
        """
        load_s = sum(self.load_s(tier, n * shape.token_bytes) for tier, n in tiers.items())
        prefill_s = self.prefill_s(num_tokens)
        free = load_s / prefill_s if prefill_s else 0.0
        return min(max(self.floor(collection), free), 1.0)

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
        with self._lock:
            known = self._byte_s.setdefault(tier, deque(maxlen=_REMEMBERED))
            known.append(seconds / max(size_bytes, 1))

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Take note of a prefill that reused nothing."""
        if num_tokens >= _FEWEST_TOKENS and seconds > 0:
            with self._lock:
                self._token_s.append(seconds / num_tokens)

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: answers that began with a plain prefill are measurements of it."""
        if name != "engine.finish" or "ttft_ms" not in fields or fields.get("blended"):
            return
        computed = float(fields["prompt_tokens"] or 0) - float(fields["exact"] or 0)
        self.prefilled(int(computed), float(fields["ttft_ms"] or 0) / 1000)


class Stopwatch(Executor):
    """Runs loads on another executor and tells the controller how long each took."""

    def __init__(
        self,
        loader: Executor,
        clock: Clock,
        controller: Controller,
        tier: str,
        size_bytes: Callable[[Any], int],
    ) -> None:
        """`size_bytes` says how much a load has brought."""
        self._loader = loader
        self._clock = clock
        self._controller = controller
        self._tier = tier
        self._size_bytes = size_bytes

    def submit(self, load: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._loader.submit(self._timed, load, *args, **kwargs)

    def _timed(self, load: Any, *args: Any, **kwargs: Any) -> Any:
        started = self._clock.now()
        loaded = load(*args, **kwargs)
        took_s = self._clock.now() - started
        self._controller.loaded(self._tier, self._size_bytes(loaded), took_s)
        return loaded
