"""From settings to an open store: its tiers on this machine, and those across the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from kdn.clock import Clock, SystemClock
from kdn.store.policies import Rules, Use, make_policy
from kdn.store.settings import FarSettings, StoreConfig
from kdn.store.store import Store
from kdn.store.tenants.tenancy import PersistentPins, Quotas, TenantsLimits
from kdn.store.tiers.disk.disk import DiskTier
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.remote import REMOTES
from kdn.store.tiers.remote.calls import RemoteCallSettings
from kdn.store.tiers.remote.tier import RemoteSettings, RemoteTier
from kdn.store.tiers.seal import KeyRing
from kdn.store.tiers.tier import ManagedTier
from kdn.store.writer import WorthWriting
from kdn.trace import GuardedTrace, NoTrace, Trace

__all__ = ["FarSettings", "open_store"]

_DEFAULTS = StoreConfig()


def open_store(
    folder: Path | None,
    *,
    memory_bytes: int = _DEFAULTS.memory_bytes,
    disk_bytes: int | None = None,
    disk_direct: bool = False,
    far: FarSettings | None = None,
    quotas: Quotas | None = None,
    ring: KeyRing | None = None,
    clock: Clock | None = None,
    trace: Trace | None = None,
    policy: str = _DEFAULTS.policy,
    rules: Rules | None = None,
    saving: Callable[[Use], float] | None = None,
    worth_writing: WorthWriting | None = None,
    ttl_of: Callable[[str, Use], float | None] | None = None,
) -> Store:
    """A store of memory over the disk in `folder`, or of memory alone, with `far` tiers across a network.

    `disk_bytes` None means the cap last given for this folder, or else 20 GB or a tenth of what is
    free, whichever is less.  Raises ForeignStore for a folder that belongs to something else,
    StoreError for one that cannot be used, BadConfig and MissingExtra for far tiers that cannot be
    set up.  One that does not answer is no error: it is asked again later.  With a `ring` blocks
    are sealed on the disk, in Redis and in object stores; a peer node seals its own.  `policy` says
    which blocks go when room is short, `rules` what people decide over it, `saving` what a use of a
    block saves (for `value`); BadInput for an unknown one.  `worth_writing` says whether a block
    is worth writing behind to the tier of a name, `ttl_of` how long one is worth retaining unused in memory
    or on the disk.
    """
    clock, trace = clock or SystemClock(), GuardedTrace(trace or NoTrace())
    limits = TenantsLimits(folder, clock)
    persistent_pins = PersistentPins(folder, clock)
    rules = _with_decided(rules, limits)
    if rules is not None or ttl_of is not None:
        rules = replace(rules or Rules(), spared=persistent_pins.__contains__)
    distant = _far_tiers(far or FarSettings(), clock, trace, ring)
    own_rules = _own_rules(rules, ttl_of, MemoryTier.name)
    ranks = make_policy(policy, own_rules, saving)
    tiers: list[ManagedTier] = [MemoryTier(memory_bytes, trace, ranks, clock)]
    if folder is not None:
        # without a policy of its own, processes on one folder share the catalogue's order of use
        own_rules = _own_rules(rules, ttl_of, DiskTier.name)
        plain = policy == "lru" and own_rules is None
        ranking = None if plain else make_policy(policy, own_rules, saving)
        tiers.append(
            DiskTier(
                folder,
                disk_bytes,
                clock,
                trace,
                ranking,
                ring,
                direct=disk_direct,
                pinned=persistent_pins.__contains__,
            )
        )
    return Store(
        tiers,
        far=distant,
        clock=clock,
        trace=trace,
        quotas=quotas,
        persistent_pins=persistent_pins,
        limits=limits,
        worth_writing=worth_writing,
    )


def _own_rules(
    rules: Rules | None, ttl_of: Callable[[str, Use], float | None] | None, tier: str
) -> Rules | None:
    """The rules of one tier, where each may have its own time to live."""
    return rules if ttl_of is None else replace(rules or Rules(), ttl_of=partial(ttl_of, tier))


def _with_decided(rules: Rules | None, limits: TenantsLimits) -> Rules | None:
    """The rules with the priorities that operators gave."""
    decided = {salt: one.priority for salt, one in limits.all().items() if one.priority is not None}
    if not decided:
        return rules
    rules = rules or Rules()
    return replace(rules, priority={**rules.priority, **decided})


def _far_tiers(
    far: FarSettings, clock: Clock, trace: Trace, ring: KeyRing | None
) -> list[ManagedTier]:
    """A tier for each remote that the settings name, nearest first."""
    calls = RemoteCallSettings(timeout_s=far.far_timeout_s, attempts=far.far_attempts)
    tiers = list[ManagedTier]()
    for kind in REMOTES.values():
        remote = kind.from_settings(far)
        if remote is None:
            continue
        poll_s = far.objects_poll_s if remote.lists_all else far.far_poll_s
        settings = RemoteSettings(calls, far.far_bytes, far.far_read_bytes, poll_s)
        sealing = None if remote.seals_itself else ring
        tiers.append(RemoteTier(remote, settings, clock, trace, ring=sealing))
    return tiers
