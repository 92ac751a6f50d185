"""The store that the settings describe, for callers that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kdn.clock import Clock, SystemClock
from kdn.config import Config
from kdn.core import BLOCK_TOKENS
from kdn.cost import Placing, load_sheet, load_speed, use_saving
from kdn.store import Quotas, Rules, Store, Use, open_store, read_key_file
from kdn.trace import Trace

__all__ = ["open_configured_store", "price_outlook"]


def open_configured_store(
    config: Config, clock: Clock | None = None, trace: Trace | None = None
) -> Store:
    """The tiers of `[store]`, open. Raises BadConfig, MissingExtra, ForeignStore, StoreError."""
    settings = config.store
    placing = _placing(config) if config.cost.enforce_prices else None
    return open_store(
        config.store_folder,
        memory_bytes=settings.memory_bytes,
        disk_bytes=settings.disk_bytes,
        disk_direct=settings.disk_direct,
        far=settings,
        ring=None if settings.key_file is None else read_key_file(settings.key_file),
        quotas=Quotas(settings.quota_bytes, settings.quotas),
        clock=clock or SystemClock(),
        trace=trace,
        policy=settings.policy,
        saving=_saving(config) if settings.policy == "value" else None,
        rules=_rules(config),
        worth_writing=None if placing is None else placing.pays,
        ttl_of=None if placing is None else _time_to_live(placing),
    )


def _placing(config: Config) -> Placing:
    return Placing(load_speed(config.cost.speed), load_sheet(config.cost.prices))


def price_outlook(
    config: Config, tiers: Iterable[str]
) -> dict[str, dict[str, bool | float | None]]:
    """What enforcing prices means for the first block of a prompt, tier by tier; empty where it is off."""
    if not config.cost.enforce_prices:
        return {}
    placing = _placing(config)
    block = (0, BLOCK_TOKENS, BLOCK_TOKENS * placing.speed.token_bytes)
    return {
        tier: {"pays": placing.pays(tier, *block), "keep_s": placing.keep_for_s(tier, *block)}
        for tier in tiers
    }


def _time_to_live(placing: Placing) -> Callable[[str, Use], float | None]:
    """How long a block is worth keeping unused in a tier, in seconds; None is for ever."""
    return lambda tier, use: placing.keep_for_s(tier, use.start, use.num_tokens, use.size_bytes)


def _rules(config: Config) -> Rules | None:
    """What people decided over the policy; None lets processes share one order of use."""
    rules = Rules(ttl_s=config.store.ttl_s, priority=config.store.priorities)
    return None if rules == Rules() else rules


def _saving(config: Config) -> Callable[[Use], float]:
    """What a use of a block saves, in dollars, by the cost model."""
    saved = use_saving(load_speed(config.cost.speed), load_sheet(config.cost.prices))
    return lambda use: saved(use.start, use.num_tokens)
