"""How many rows to recompute for the tier at hand: the loading controller (2405.16444, section 5.1).

Loading and recomputing run side by side, so the recompute that fits into the time of the load is
free.  What is measured decides; before anything was measured, the quality floor does.  Which tier
would hide a given recompute is a question of money (`kdn cost advise --blend`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from kdn.clock import Clock
from kdn.core import KvShape
from kdn.reuse.source import MeasuredSpeeds

__all__ = ["RatioController", "TimedLoader"]


class RatioController:
    """Turns measured speeds and quality floors into a ratio. Safe from several threads."""

    def __init__(self, floor: float, speeds: MeasuredSpeeds | None = None) -> None:
        """`floor` in 0..1 is the ratio that quality needs, however fast loading is."""
        self._lock = threading.Lock()
        self._floor = floor
        self._floors: dict[tuple[str, str], float] = {}
        self.speeds = speeds or MeasuredSpeeds()

    def floor(self, collection: str = "", salt: str = "") -> float:
        """The least ratio in use for that tenant's documents; 1 means that they are not blended."""
        with self._lock:
            return self._floors.get((salt, collection), self._floor)

    def set_floor(self, floor: float, collection: str = "", salt: str = "") -> None:
        """What the quality guard has found to be needed. What is no number stops blending."""
        with self._lock:
            bounded = 1.0 if math.isnan(floor) else min(max(floor, 0.0), 1.0)
            self._floors[salt, collection] = bounded

    def forget(self, collection: str, salt: str) -> None:
        """The floor of what was never judged holds again."""
        with self._lock:
            self._floors.pop((salt, collection), None)

    def ratio(
        self,
        tiers: Mapping[str, int],
        shape: KvShape,
        num_tokens: int,
        collection: str = "",
        salt: str = "",
    ) -> float:
        """The larger of the floor and load time / prefill time, at most 1.

        `tiers` are the reused tokens by tier; `num_tokens` those of the prompt.
        """
        load_s = sum(self.speeds.load_s(tier, n * shape.token_bytes) for tier, n in tiers.items())
        prefill_s = self.speeds.prefill_s(num_tokens)
        free = load_s / prefill_s if prefill_s else 0.0
        return min(max(self.floor(collection, salt), free), 1.0)


class TimedLoader(Executor):
    """Runs loads on another executor and notes how long each took."""

    def __init__(
        self,
        loader: Executor,
        clock: Clock,
        speeds: MeasuredSpeeds,
        tier: str,
        size_bytes: Callable[[Any], int],
    ) -> None:
        """`size_bytes` says how much a load has brought."""
        self._loader = loader
        self._clock = clock
        self._speeds = speeds
        self._tier = tier
        self._size_bytes = size_bytes

    def submit(self, load: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._loader.submit(self._timed, load, *args, **kwargs)

    def _timed(self, load: Any, *args: Any, **kwargs: Any) -> Any:
        started = self._clock.now()
        loaded = load(*args, **kwargs)
        took_s = self._clock.now() - started
        self._speeds.loaded(self._tier, self._size_bytes(loaded), took_s)
        return loaded
