"""How requests share what a sibling of their model has read: the option, and the settings behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kdn.errors import BadInput

__all__ = ["Share", "ShareConfig"]


class ShareConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model uses KV that a sibling of it has computed, in all that requests do not say."""

    mode: Literal["exact", "published", "best"] = "best"
    """`best`: where `kdn share profile` measured a pair; `exact`: only what is the model's own bit for bit,
    such as the context of an aLoRA."""
    max_kl: Annotated[float, Meta(gt=0)] = 0.05
    """Mean KL divergence (nats), as profiled, that a way to share may have."""
    within_s: Annotated[float, Meta(gt=0)] | None = None
    """By when a context is to be read, where no other request waits; None: with the least work."""
    guard_every: Annotated[int, Meta(ge=0)] = 50
    """One in so many shared answers is compared with a full prefill later; 0 never."""
    guard_kl: Annotated[float, Meta(gt=0)] = 0.5
    """Mean KL divergence (nats, first token) beyond which a model stops to share."""


@dataclass(frozen=True)
class Share:
    """Option of sharing: a sibling's KV of the context stands in where the model's own is not stored.

    `exact` shares nothing that is not the model's own, bit for bit; `published` recomputes a contiguous
    group of layers (DroidSpeak); `best` takes whatever was best for the pair.  Raises BadInput for
    another mode, or limits that are no numbers above 0.
    """

    mode: Literal["exact", "published", "best"] = "best"
    max_kl: float | None = None
    """How far (mean KL, nats, as profiled) answers may move; None: as the settings say."""
    within_s: float | None = None
    """By when the context is to be read, where no other request waits; None: as the settings say."""

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "published", "best"):
            raise BadInput(f"share is {self.mode!r:.80}; it can be exact, published or best")
        for name, limit in (("max_kl", self.max_kl), ("within_s", self.within_s)):
            if limit is not None and not _is_above_0(limit):
                raise BadInput(f"{name} must be a finite number above 0, not {limit!r:.80}")


def _is_above_0(limit: object) -> bool:
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        return False
    return 0 < limit < math.inf
