"""The settings `[cost]`."""

from __future__ import annotations

import msgspec

__all__ = ["CostConfig"]


class CostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What money saved and spent is worked out from, and what the policy `value` ranks blocks by."""

    prices: str = "laptop"
    """A price sheet that comes with kdn, or a .toml file."""
    speed: str = "smollm2-135m-cpu"
    """A model on a machine that comes with kdn, or a .toml file."""
    enforce_prices: bool = False
    """Blocks are written only to tiers where a use repays it, and go when keeping cost what a use saves."""
