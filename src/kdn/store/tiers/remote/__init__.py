"""Tiers across a network: Redis, object stores, nodes.

A new one is one file here, a `Remote`, and one line of REMOTES; its settings stand in `[store.remotes]`
under its name.
"""

from __future__ import annotations

from kdn.store.tiers.remote.client import Remote
from kdn.store.tiers.remote.objects import ObjectRemote
from kdn.store.tiers.remote.peer import PeerRemote
from kdn.store.tiers.remote.redis import RedisRemote

__all__ = ["REMOTES"]

REMOTES: dict[str, type[Remote]] = {
    "peer": PeerRemote,
    "redis": RedisRemote,
    "objects": ObjectRemote,
}
"""Every kind of remote by name, nearest first."""
