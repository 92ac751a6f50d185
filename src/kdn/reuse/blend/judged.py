"""Which collections are judged: apart by tenant, so many of each, and the least recently used is let go."""

from __future__ import annotations

from collections.abc import Iterator

from kdn.reuse.blend.monitor import CollectionMonitor
from kdn.reuse.blend.record import GuardRecord

__all__ = ["JudgedCollections"]

_MOST_OF_ONE, _MOST_OF_ALL = 256, 1024
"""Collections of one tenant, and of all of them: callers make names up."""


class JudgedCollections:
    """Monitors by salt and collection. Not safe from several threads."""

    def __init__(self, floor: float) -> None:
        """`floor` is the least ratio of what was never judged."""
        self._floor = floor
        self._by_salt: dict[str, dict[str, CollectionMonitor]] = {}

    def __iter__(self) -> Iterator[tuple[str, str, CollectionMonitor]]:
        for salt, own in self._by_salt.items():
            for collection, monitor in own.items():
                yield salt, collection, monitor

    def use(
        self, salt: str, collection: str, record: GuardRecord | None = None
    ) -> CollectionMonitor:
        """The monitor, the most recently used from now on; a new one knows what the record tells."""
        own = self._by_salt.pop(salt, {})
        monitor = own.pop(collection, None) or CollectionMonitor(self._floor, record)
        own[collection] = monitor
        self._by_salt[salt] = own
        return monitor

    def let_go(self) -> tuple[str, str] | None:
        """Forget one that is too many, if any is: salt and collection.

        Where all tenants together have too many, it is one of the tenant that has the most: nobody
        makes up so many names that another's are forgotten before its own.
        """
        salt = max(self._by_salt, key=lambda one: len(self._by_salt[one]))
        own = self._by_salt[salt]
        if len(own) <= _MOST_OF_ONE and sum(map(len, self._by_salt.values())) <= _MOST_OF_ALL:
            return None
        collection = next(iter(own))
        del own[collection]
        if not own:
            del self._by_salt[salt]
        return salt, collection
