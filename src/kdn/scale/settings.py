"""The settings of a connector, as an engine hands them over, and the store that they open.

Connectors of one process that have equal settings share one store: an engine makes a connector for
its scheduler and one for its worker, and both must see the same memory tier.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kdn.errors import BadConfig
from kdn.machine.files import expanded
from kdn.store import FarSettings, Store, open_store, read_key_file
from kdn.trace import Trace, Value

__all__ = ["ConnectorSettings", "SharedStores", "read_settings"]

_Bytes = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]


class ConnectorSettings(FarSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which store a connector uses, and how. The far tiers are named as in `[store]`."""

    folder: Path | None = None
    """The disk tier's folder; None leaves the disk out."""
    disk_bytes: _Bytes | None = None
    """Hard cap of the disk tier. The folder remembers the one that was asked for last, and None takes it;
    where none ever was, the smaller of 20 GB and a tenth of what is free."""
    disk_direct: bool = False
    """Read blocks past the operating system's cache (O_DIRECT)."""
    memory_bytes: _Bytes = 2 * 1024**3
    """Hard cap of the memory tier of each engine process."""
    policy: str = "lru"
    """Which blocks go when room is short."""
    key_file: Path | None = None
    """Keys to seal blocks with at rest, as TOML: `master = HEX`."""
    save: bool = True
    """Store the KV of prompts; false only loads."""
    least_tokens: _Positive = 1
    """Load only where it spares at least so many tokens."""
    save_queue_bytes: _Bytes = 512 * 1024**2
    """The most bytes that may wait to be stored; what comes on top is not stored, and counted."""
    load_threads: _Positive = 2
    """How many requests load at the same time."""

    def tiers(self) -> str:
        """The tiers in a few words, without passwords."""
        far = [name for name in ("peer_url", "redis_url", "objects_url") if getattr(self, name)]
        return ", ".join(["memory", *(["disk"] if self.folder else []), *far, *self.remotes])

    @property
    def is_shared(self) -> bool:
        """Can another process see what is stored?"""
        far = (self.peer_url, self.redis_url, self.objects_url, self.remotes)
        return self.folder is not None or any(far)


def read_settings(given: Mapping[str, Any]) -> ConnectorSettings:
    """Settings from JSON-like values. Raises BadConfig that names what is wrong."""
    try:
        return msgspec.convert(dict(given), ConnectorSettings, dec_hook=_as_path)
    except msgspec.ValidationError as error:
        known = ", ".join(ConnectorSettings.__struct_fields__)
        raise BadConfig(
            f"the connector's settings are wrong: {error}; the settings are {known}"
        ) from error


def _as_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return expanded(value)
    raise ValueError(f"expected a {kind.__name__}, got {value!r}")


class _Failures:
    """A trace that keeps, of each tier, why it failed first."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def event(self, name: str, **fields: Value) -> None:
        if name == "store.failed":
            self.reasons.setdefault(str(fields["tier"]), str(fields["reason"]))


@dataclass
class _Opened:
    store: Store
    failures: _Failures
    users: int = 1


class SharedStores:
    """Open stores by their settings, closed when their last user leaves. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[int, bytes], _Opened] = {}

    def enter(self, settings: ConnectorSettings) -> Store:
        """The store of these settings. Raises as `open_store` does."""
        with self._lock:
            # a child that was forked must not use its parent's threads and sockets
            name = os.getpid(), msgspec.json.encode(settings, enc_hook=str)
            opened = self._open.get(name)
            if opened is not None:
                opened.users += 1
                return opened.store
            failures = _Failures()
            store = _open(settings, failures)
            self._open[name] = _Opened(store, failures)
            return store

    def failures(self, store: Store) -> dict[str, str]:
        """Tiers that have failed since the store was opened, each with its first reason."""
        with self._lock:
            (found,) = (one for one in self._open.values() if one.store is store)
            return dict(found.failures.reasons)

    def leave(self, store: Store) -> None:
        """One user fewer; the last one closes the store."""
        with self._lock:
            for name, opened in list(self._open.items()):
                if opened.store is store:
                    opened.users -= 1
                    if opened.users == 0:
                        del self._open[name]
                        store.close()


def _open(settings: ConnectorSettings, trace: Trace) -> Store:
    return open_store(
        settings.folder,
        memory_bytes=settings.memory_bytes,
        disk_bytes=settings.disk_bytes,
        disk_direct=settings.disk_direct,
        far=settings,
        ring=None if settings.key_file is None else read_key_file(settings.key_file),
        policy=settings.policy,
        trace=trace,
    )
