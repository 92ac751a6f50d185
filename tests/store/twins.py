"""The dull twins of the store's seams: a tier that stores nothing, a remote that is a dict."""

from __future__ import annotations

import threading
from typing import Self

from kdn.core import BlockKey
from kdn.store import Changes, EncodedBlock, Listed, ManagedTier, Remote, RemoteChanges, TierUsage
from kdn.store.block.reader import Handle
from kdn.store.settings import FarSettings
from kdn.store.tiers.tier import Spare


class NoTier(ManagedTier):
    """Stores nothing: the baseline every hit rate is measured against."""

    name = "none"
    trusted = True

    def open(self, key: BlockKey) -> Handle | None:
        return None

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        return None

    def drop(self, key: BlockKey) -> bool:
        return False

    def holds(self, key: BlockKey) -> bool:
        return False

    def changes(self) -> Changes:
        return Changes()

    def usage(self) -> TierUsage:
        return TierUsage(0, 0, 0, 0)


class DictRemote(Remote):
    """A dict in place of the network: the plain twin, shared by as many tiers as a test wants."""

    name = "dict"

    @classmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        return cls() if cls.name in settings.remotes else None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[BlockKey, tuple[bytes, bytes]] = {}

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        with self._lock:
            found = self._blocks.get(key)
        return None if found is None else (found[1][:num_bytes], len(found[1]))

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        with self._lock:
            return self._blocks.get(key, (b"", b""))[1][start:stop]

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        with self._lock:
            self._blocks[key] = (note, bytes(data))

    def remove(self, key: BlockKey) -> bool:
        with self._lock:
            return self._blocks.pop(key, None) is not None

    def changes(self) -> RemoteChanges:
        with self._lock:
            listed = [Listed(key, note, len(data)) for key, (note, data) in self._blocks.items()]
        return RemoteChanges(tuple(listed), whole=True)


class Meeting(DictRemote):
    """A remote whose reads end once `size` of them are under way together."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.met = threading.Barrier(size, timeout=30)

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        self.met.wait()
        return super().read(key, start, stop)


class Door(DictRemote):
    """A remote where nothing is opened unless `size` blocks are asked for at the same time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._met = threading.Barrier(size, timeout=30)

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        self._met.wait()
        return super().head(key, num_bytes)
