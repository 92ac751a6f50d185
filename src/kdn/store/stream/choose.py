"""Which encoding of each block to ask for, so that all of it is there by a deadline.

The streaming half of CacheGen (Liu et al., SIGCOMM 2024, section 5.3): before every block, take
the best quality with which everything that is left still arrives in time at the speed measured
last; if even the smallest does not, compute the block from its text, where that is quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Adaptation", "Level"]


@dataclass(frozen=True)
class Level:
    """An encoding that a block can be had in; a lossless one has a `kl` of 0."""

    codec: str
    token_bytes: float
    kl: float


class Adaptation:
    """Chooses, block by block, against one deadline. Pure: time and speed come in.

    `max_kl` shuts out levels that lose more; without it only lossless ones are chosen, for a loss
    is never chosen by itself.  Of levels that lose the same the one named first is preferred.
    """

    def __init__(self, levels: Sequence[Level], deadline_s: float, max_kl: float = 0.0) -> None:
        allowed = [level for level in levels if level.kl <= max_kl]
        self._levels = sorted(allowed, key=lambda level: level.kl)
        self._deadline_s = deadline_s

    def choose(
        self,
        tokens_left: float,
        now_s: float,
        bytes_per_s: float,
        prefill_tokens_per_s: float | None,
    ) -> Level | None:
        """The level of the next block, with `tokens_left` from it to the end; None: compute it.

        Without `prefill_tokens_per_s` computing is out of the question.
        """
        left_s = max(self._deadline_s - now_s, 0.0)
        for level in self._levels:
            if tokens_left * level.token_bytes <= left_s * bytes_per_s:
                return level
        if not self._levels:
            return None
        smallest = min(self._levels, key=lambda level: level.token_bytes)
        if prefill_tokens_per_s is None:
            return smallest
        load_token_s = smallest.token_bytes / bytes_per_s if bytes_per_s > 0 else float("inf")
        return smallest if load_token_s <= 1 / prefill_tokens_per_s else None
