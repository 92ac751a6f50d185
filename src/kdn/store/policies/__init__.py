"""Which blocks go when room is short: policies behind one seam, chosen by name.

A new policy is one file here and one line of POLICIES.
"""

from __future__ import annotations

from collections.abc import Callable

from kdn.errors import BadInput
from kdn.store.policies.arc import Arc
from kdn.store.policies.policy import EvictionPolicy, Fifo, Lru, Use
from kdn.store.policies.rules import Ruled, Rules
from kdn.store.policies.s3fifo import S3Fifo
from kdn.store.policies.value import Saving, Value, same_saving

__all__ = [
    "POLICIES",
    "Arc",
    "EvictionPolicy",
    "Fifo",
    "Lru",
    "Ruled",
    "Rules",
    "S3Fifo",
    "Use",
    "Value",
    "make_policy",
]

POLICIES: dict[str, Callable[[Saving], EvictionPolicy]] = {
    "fifo": lambda _: Fifo(),
    "lru": lambda _: Lru(),
    "s3fifo": lambda _: S3Fifo(),
    "arc": lambda _: Arc(),
    "value": Value,
}
"""Every policy by its name in the settings; a maker is given what one use of a block saves."""


def make_policy(
    name: str, rules: Rules | None = None, saving: Saving | None = None
) -> EvictionPolicy:
    """A policy by name, under rules if there are any; `saving` None is the same for every byte.

    Raises BadInput, naming those there are.
    """
    if name not in POLICIES:
        raise BadInput(f"no eviction policy {name!r}; there are {', '.join(POLICIES)}")
    policy = POLICIES[name](saving or same_saving)
    return policy if rules is None else Ruled(policy, rules)
