"""Which blocks go when room is short: policies behind one seam, chosen by name."""

from __future__ import annotations

from collections.abc import Callable

from kdn.errors import BadInput
from kdn.store.policies.arc import Arc
from kdn.store.policies.order import Fifo, Lru
from kdn.store.policies.policy import EvictionPolicy, Use
from kdn.store.policies.rules import Ruled, Rules
from kdn.store.policies.s3fifo import S3Fifo
from kdn.store.policies.value import Value

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

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "fifo": Fifo,
    "lru": Lru,
    "s3fifo": S3Fifo,
    "arc": Arc,
    "value": Value,
}


def make_policy(
    name: str, rules: Rules | None = None, saving: Callable[[Use], float] | None = None
) -> EvictionPolicy:
    """A policy by name, under rules if there are any; `saving` is for `value`.

    Raises BadInput, naming those there are.
    """
    if name not in POLICIES:
        raise BadInput(f"no eviction policy {name!r}; there are {', '.join(POLICIES)}")
    policy = Value(saving) if name == "value" and saving is not None else POLICIES[name]()
    return policy if rules is None else Ruled(policy, rules)
