"""What the store tells, as plain values: the same for commands and for HTTP."""

from __future__ import annotations

from typing import Any

from kdn.store.admin.manage import usage_by_salt
from kdn.store.index.index import Match
from kdn.store.store import Store, StoreStat

__all__ = ["lookup_shape", "quota_shape", "stat_shape"]


def stat_shape(stat: StoreStat) -> dict[str, Any]:
    """What is held, by tier, and how fast each tier gave.

    Speeds and counts are of this opening of the store: what another process met, that process tells.
    """
    return {
        "blocks": stat.blocks,
        "lost": stat.lost,
        "not_worth_writing": stat.not_worth_writing,
        "delivered_bytes": dict(stat.delivered),
        "tiers": {
            name: {
                "blocks": tier.blocks,
                "tokens": tier.tokens,
                "size_bytes": tier.size_bytes,
                "capacity_bytes": tier.capacity_bytes,
                "bytes_per_s": stat.bytes_per_s.get(name),
                "open_circuits": name in stat.open_circuits,
            }
            for name, tier in stat.tiers.items()
        },
    }


def quota_shape(store: Store) -> dict[str, Any]:
    """What each tenant holds in each tier, and may hold."""
    held = usage_by_salt(store)
    limited = dict.fromkeys([*held, *store.tenancy.quotas.by_salt, *store.tenancy.limits.all()])
    return {
        salt: {
            "limit_bytes": store.tenancy.quota_of(salt),
            "priority": store.tenancy.limits.of(salt).priority,
            "held_bytes": held.get(salt, {}),
        }
        for salt in limited
    }


def lookup_shape(match: Match, num_tokens: int) -> dict[str, Any]:
    """What would hit, and where."""
    return {
        "tokens": num_tokens,
        "hit_tokens": match.num_tokens,
        "hits": [
            {
                "key": hit.id.key,
                "start": hit.id.start,
                "tokens": hit.num_tokens,
                "tier": hit.tier,
                "public": hit.id.salt == "public",
            }
            for hit in match.hits
        ],
    }
