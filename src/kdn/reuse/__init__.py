"""Techniques: small modules that turn a request and what is stored into a plan."""

from __future__ import annotations

from kdn.reuse.loss import LossRule, lossy_recipe
from kdn.reuse.prefix import PrefixReuse
from kdn.reuse.source import StoreSource

__all__ = ["LossRule", "PrefixReuse", "StoreSource", "lossy_recipe"]
