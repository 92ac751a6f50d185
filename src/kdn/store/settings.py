"""The settings `[store]`: where KV is stored, and how much of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from kdn.errors import BadConfig
from kdn.store.codecs import CODECS
from kdn.store.policies import POLICIES
from kdn.store.tiers.remote import REMOTES

__all__ = ["AUTO_CODEC", "FarSettings", "StoreConfig"]

AUTO_CODEC = "auto"
"""Takes the smallest codec that was measured to be within `max_kl`."""

_Bytes = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0)]


class FarSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which tiers there are across the network, and how they are used; None: not that one."""

    peer_url: str | None = None
    """A node whose blocks are read and that ours are sent to, as `https://host:8100`."""
    peer_token: str | None = None
    """What that node wants as a bearer token."""
    peer_authority: Path | None = None
    """Certificates (PEM) to trust that node by; None trusts what the system trusts."""
    redis_url: str | None = None
    """A Redis to store blocks in, as `redis://:password@host:6379/0`."""
    objects_url: str | None = None
    """An object store to store blocks in, as `s3://bucket/prefix`, `gs://...` or `file:///folder`."""
    object_options: dict[str, str] = {}
    """The object store's own settings (`endpoint`, `region`, ...); else its usual environment."""
    remotes: dict[str, dict[str, str]] = {}
    """Settings of further kinds of remote, by the kind's name."""
    far_bytes: _Bytes | None = None
    """The most bytes to leave in each tier across the network; None leaves that to them. At a node only what
    this process put there counts."""
    far_timeout_s: _Seconds = 2.0
    """The most that one call across the network may take before it counts as failed."""
    far_attempts: _Positive = 2
    """How often such a call is tried in all, within that time."""
    far_read_bytes: _Positive = 1024**2
    """The least that one read across the network asks for."""
    far_poll_s: Annotated[float, Meta(ge=0)] = 1.0
    """How late we may learn of blocks that others put there; 0 asks at every lookup."""
    objects_poll_s: Annotated[float, Meta(ge=0)] = 30.0
    """The same for an object store, where asking means a listing."""


class StoreConfig(FarSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where KV is stored, and how much of it. Raises BadConfig for a codec or policy that there is not."""

    folder: Path | None = None
    """The disk tier's folder; None is `store` in the home folder."""
    disk_bytes: _Bytes | None = None
    """Hard cap of the disk tier. The folder remembers the one that was asked for last, and None takes it;
    where none ever was, the smaller of 20 GB and a tenth of what is free."""
    memory_bytes: _Bytes = 2 * 1024**3
    """Hard cap of the memory tier."""
    codec: str = "none"
    """How blocks are written; lossy ones taint them; auto takes the smallest within `max_kl`."""
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Mean KL (nats), by `kdn store calibrate`, up to which a lossy codec may be used; 0: none may."""
    policy: str = "lru"
    """Which blocks go when room is short."""
    ttl_s: _Seconds | None = None
    """A block goes this long after its last use, room or not; None keeps it while there is room."""
    load_within_s: _Seconds | None = None
    """By when stored KV is to be loaded: over a slow link a node then sends it smaller, with loss only
    within `max_kl`. None is before it would be computed, where that is known."""
    priorities: dict[str, int] = {}
    """By salt: blocks of a lower priority (0 where none is given) go before those of a higher one."""
    record: Path | None = None
    """Write every lookup to this file, for `kdn store simulate`; None writes nothing."""
    prefill_tokens_per_s: _Seconds | None = None
    """How quick a prefill is here: blocks that load more slowly are computed.
    None takes what `kdn cost fit` found; where that was never run, what is stored is always loaded."""
    disk_direct: bool = False
    """Read blocks past the operating system's cache (O_DIRECT); pays where memory is short."""
    key_file: Path | None = None
    """Keys to seal blocks with at rest (AES-GCM), as TOML: `master = HEX`; None seals nothing."""
    quota_bytes: _Bytes | None = None
    """The most that one tenant (salt) may hold in any one tier; None sets no limit. What `kdn store quota`
    decided about a tenant goes before this and before `quotas`, and stays."""
    quotas: dict[str, _Bytes] = {}
    """Quotas in bytes of tenants for whom `quota_bytes` is not right, by salt."""

    def __post_init__(self) -> None:
        _known("store.codec", self.codec, (AUTO_CODEC, *CODECS))
        _known("store.policy", self.policy, POLICIES)
        for name in self.remotes:
            _known("store.remotes", name, REMOTES)


def _known(setting: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise BadConfig(f"{setting} is {name!r}; it can be {', '.join(names)}")
