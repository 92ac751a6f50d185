"""What a policy sees of a request, and how long prompts take: numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["JctModel", "Job", "PrefillTime"]


@dataclass(frozen=True)
class Job:
    """A waiting request as a policy sees it."""

    id: str
    arrival_ns: int
    num_tokens: int
    num_cached: int
    """Prompt tokens that the store holds now, as counted last."""
    max_new_tokens: int
    priority: int = 0
    group: str | None = None
    group_size: int = 1
    num_cached_at_arrival: int = 0
    """What the store held when the job came: all that a policy without calibration knows."""
    family: str = ""
    """Equal for jobs that begin with the same `num_shared` tokens and leave them in the store; empty for
    a job that leaves nothing."""
    num_shared: int = 0
    background: bool = False
    """Goes after every job that is not, under every policy."""

    @property
    def num_missing(self) -> int:
        """Prompt tokens that must be computed."""
        return self.num_tokens - self.num_cached

    @property
    def num_shared_missing(self) -> int:
        """Those of them that the rest of the family would find stored, once it ran."""
        return max(self.num_shared - self.num_cached, 0) if self.family else 0


@dataclass(frozen=True)
class JctModel:
    """How long computing a prompt takes: seconds, from the tokens to compute and those reused.

    A quadratic form over (new, cached): a fixed part per pass, work per token, attention of new
    tokens to those before them, and loading the reused ones.
    """

    pass_s: float
    """What every pass costs, however little is in it."""
    token_s: float
    """Position-wise work of one new token."""
    pair_s: float
    """Attention of one new token to one column."""
    cached_s: float
    """Loading one reused token."""
    error: float | None = None
    """Median relative error over the measured grid; None for a count of operations."""
    source: str = "flops"
    """`flops`: counted, not measured; `fit`: fitted to measurements."""
    prompt_s: float = 0.0
    """What each prompt but the first adds to a pass, beside its tokens."""

    @property
    def column_s(self) -> float:
        """What a decode step takes for each column of its sequences.

        A step reads all KV once for a single row, which memory bounds; a prefill shares what it reads among
        its rows.  Reusing a token reads its KV and writes it, so half of that time is taken for a read.
        """
        return self.cached_s / 2

    def seconds(self, num_new: int, num_cached: int = 0) -> float:
        """One prompt of `num_cached` reused and `num_new` computed tokens, alone in its pass."""
        return self.pass_s + self.share(num_new, num_cached)

    def share(self, num_new: int, num_cached: int = 0) -> float:
        """What the prompt's tokens add to a pass that runs anyway."""
        pairs = num_new * (num_cached + (num_new + 1) / 2)
        return self.token_s * num_new + self.pair_s * pairs + self.cached_s * num_cached

    def beside(self, num_new: int, num_cached: int) -> float:
        """What the prompt adds to a pass in which another prompt loads the same reused tokens."""
        return self.prompt_s + self.share(num_new, num_cached) - self.cached_s * num_cached

    def microseconds(self, num_new: int, num_cached: int = 0) -> int:
        """`seconds` as schedulers want it: whole microseconds."""
        return round(1e6 * self.seconds(num_new, num_cached))


class PrefillTime(Protocol):
    """How long a prefill takes."""

    def seconds(self, num_new: int, num_cached: int) -> float:
        """Seconds to compute `num_new` tokens after `num_cached` ones whose KV is at hand."""
