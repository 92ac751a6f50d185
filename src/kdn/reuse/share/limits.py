"""What a request allows of sharing, and the names of the KV that it may so read.

KV that came from a sibling, or was computed after such KV, is kept under a recipe that names the way and
the KL that was profiled of it: `share:layers 4-10 0.031`.  A request reads only what it might have made
itself: ways that its mode and its `max_kl` allow, as the receiver's profiles say now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kdn.core import Blend, Cause, Recipe, Request, Share, ShareConfig
from kdn.reuse.share.pairs import PairRecord, SharePoint

__all__ = ["ShareLimits", "limits_of", "shared_recipe"]


@dataclass(frozen=True)
class ShareLimits:
    """The ways that a request allows."""

    mode: Literal["published", "best"]
    max_kl: float
    within_s: float | None = None

    def reads(self, records: Iterable[PairRecord]) -> list[Recipe]:
        """The recipes of one receiver's profiles that may stand in for computing, the least KL first."""
        points = [
            point
            for record in records
            for point in record.allowed(self.mode)
            if point.kl <= self.max_kl
            and not point.ratio  # rows are chosen for one question: not kept
        ]
        points.sort(key=lambda one: one.kl)
        return list(dict.fromkeys(map(shared_recipe, points)))


def limits_of(request: Request, settings: ShareConfig) -> ShareLimits | None:
    """What the request says before what the settings say; None: it shares nothing, as a blended one."""
    asked = request.option(Share) or Share(settings.mode)
    if asked.mode == "exact" or request.option(Blend) is not None:
        return None
    max_kl = settings.max_kl if asked.max_kl is None else asked.max_kl
    within_s = settings.within_s if asked.within_s is None else asked.within_s
    return ShareLimits(asked.mode, max_kl, within_s)


def shared_recipe(point: SharePoint) -> Recipe:
    """Of KV that was shared in this way, and of all that is computed after it."""
    return Recipe((Cause.SHARE,), f"{point.choice.name} {float(point.kl)!r}")
