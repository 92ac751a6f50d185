"""How much each tenant may hold in any one tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdn.core import BlockKey
from kdn.errors import NoSpace

__all__ = ["Holding", "Quotas", "over_quota"]


class Holding(NamedTuple):
    """A tenant's block in a tier."""

    key: BlockKey
    size_bytes: int


@dataclass(frozen=True)
class Quotas:
    """Bytes by salt; `default_bytes` holds for those not named. None is no limit."""

    default_bytes: int | None = None
    by_salt: Mapping[str, int] = field(default_factory=dict)

    def limit(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier."""
        return self.by_salt.get(salt, self.default_bytes)

    def __bool__(self) -> bool:
        return self.default_bytes is not None or bool(self.by_salt)


def over_quota(
    salt: str, limit: int, size_bytes: int, held: Sequence[Holding], spared: Sequence[BlockKey]
) -> list[BlockKey]:
    """Which of the tenant's own blocks (oldest use first) go, so that `size_bytes` more fit.

    A tenant pays with its own blocks only.  Raises NoSpace when even that is not enough.
    """
    excess = sum(one.size_bytes for one in held) + size_bytes - limit
    going = []
    for one in held:
        if excess <= 0:
            break
        if one.key not in spared:
            going.append(one.key)
            excess -= one.size_bytes
    if excess > 0:
        raise NoSpace(
            f"a block of {size_bytes} bytes does not fit in the quota of {limit} bytes that tenant"
            f" {salt!r} has, beside what is in use or pinned: raise the quota, or unpin"
        )
    return going
