"""The store that the settings describe, for who wants it without a model."""

from __future__ import annotations

from collections.abc import Callable

from kdn.clock import Clock, SystemClock
from kdn.config import Config
from kdn.cost import load_sheet, load_speed, use_saving
from kdn.store import FarSettings, Quotas, Rules, Store, Use, open_store, read_key_file
from kdn.trace import Trace

__all__ = ["open_configured_store"]


def open_configured_store(
    config: Config, clock: Clock | None = None, trace: Trace | None = None
) -> Store:
    """The tiers of `[store]`, open. Raises BadConfig, MissingExtra, ForeignStore, StoreError."""
    settings = config.store
    far = FarSettings(
        peer_url=settings.peer_url,
        peer_token=settings.peer_token,
        peer_authority=settings.peer_authority,
        redis_url=settings.redis_url,
        objects_url=settings.objects_url,
        object_options=settings.object_options,
        timeout_s=settings.far_timeout_s,
        attempts=settings.far_attempts,
        capacity_bytes=settings.far_bytes,
        read_bytes=settings.far_read_bytes,
        news_s=settings.far_news_s,
        objects_news_s=settings.objects_news_s,
    )
    return open_store(
        config.store_folder,
        memory_bytes=settings.memory_bytes,
        disk_bytes=settings.disk_bytes,
        disk_direct=settings.disk_direct,
        far=far,
        ring=None if settings.key_file is None else read_key_file(settings.key_file),
        quotas=Quotas(settings.quota_bytes, settings.quotas),
        clock=clock or SystemClock(),
        trace=trace,
        policy=settings.policy,
        saving=_saving(config) if settings.policy == "value" else None,
        rules=_rules(config),
    )


def _rules(config: Config) -> Rules | None:
    """What people decided over the policy; None lets processes share one order of use."""
    rules = Rules(ttl_s=config.store.ttl_s, priority=config.store.priorities)
    return None if rules == Rules() else rules


def _saving(config: Config) -> Callable[[Use], float]:
    """What a use of a block saves, in dollars, by the cost model."""
    saved = use_saving(load_speed(config.cost.speed), load_sheet(config.cost.prices))
    return lambda use: saved(use.start, use.num_tokens)
