"""From a request to its plan, and from computed KV to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kdn.core.blocks import Recipe
from kdn.core.names import Fingerprint, TokenIds
from kdn.core.plans import Plan
from kdn.core.requests import Request

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Invoked", "Planned", "Planner", "RetainedKV"]


@dataclass(frozen=True)
class Invoked:
    """An adapter that begins within a prompt: rows from `start` on are named by `fingerprint`.

    Those before it are computed, and named, as without the adapter.
    """

    start: int
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Planned:
    """A plan, and the source of the prompt tokens that it reuses."""

    plan: Plan
    exact: int = 0
    blended: int = 0
    shared: int = 0
    lossy: int = 0
    stored: int = 0
    """Tokens at the prompt's beginning that the store held, loaded or not."""
    declined: int = 0
    """Of those, the ones left aside because computing them is sooner."""
    moved: tuple[tuple[int, int], ...] = ()
    """Ranges of positions whose KV comes from another place than a beginning, or from a sibling."""
    load_s: Callable[[], float] = lambda: 0.0
    """Seconds spent reading so far."""
    tiers: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    """Bytes that came against a deadline, by encoding; grows while they come."""


@dataclass(frozen=True)
class RetainedKV:
    """KV of positions [start, start + tokens) of a request, ready to be stored."""

    start: int
    token_ids: TokenIds
    """All tokens from position 0 up to the end of what is kept."""
    kv: Tensor
    """[layers, 2, tokens, kv heads, dim]: K without rotary position, and V."""
    recipe: Recipe
    is_answer: bool
    """True for the question and the generated tokens, False for the prompt before them."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Inputs of some layers for the same positions, by layer: [tokens, hidden]."""


class Planner(Protocol):
    """Makes plans of requests, and stores the KV that they retain."""

    def cached_tokens(self, request: Request) -> int:
        """How much of the prompt could be reused now. Moves no bytes."""

    def plan(self, request: Request) -> Planned:
        """What to compute. Called when the request is about to run, and again after a failed load.

        Takes nothing from the store where the request's `reuse` is False: so it is asked, too, when what
        was taken could not be loaded or does not fit.
        """

    def retain(self, request: Request, kept: RetainedKV) -> None:
        """Store KV. Must return quickly and never raise."""
