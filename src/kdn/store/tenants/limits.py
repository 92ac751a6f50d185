"""What operators decided about tenants while the store was open: quotas and priorities.

They lie in a file of the store's folder, so that every process on it holds to them, and stand before
what the settings say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kdn.clock import Clock
from kdn.errors import BadInput
from kdn.machine.files import locked, system_errors

__all__ = ["TenantLimits", "TenantsLimits"]

LOOK_EVERY_S = 1.0


class TenantLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided about one tenant; None leaves it to the settings."""

    quota_bytes: int | None = None
    priority: int | None = None


class TenantsLimits:
    """Decisions by salt, in the folder's `limits.json`. Safe from several threads and processes.

    Another process's decision holds here within a second.  Without a folder they last as long as
    the process.  A file that cannot be read decides nothing.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._path = None if folder is None else folder / "limits.json"
        self._clock = clock
        self._known: dict[str, TenantLimits] = {}
        self._looked_s: float | None = None

    def of(self, salt: str) -> TenantLimits:
        """What was decided about that tenant."""
        return self.all().get(salt, TenantLimits())

    def all(self) -> Mapping[str, TenantLimits]:
        """Everything decided, by salt."""
        now = self._clock.now()
        if self._looked_s is None or now - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now
            self._known = self._read()
        return self._known

    def decide(self, salt: str, change: TenantLimits) -> TenantLimits:
        """Change what `change` speaks of, and return all that holds now. Raises BadInput."""
        if change.quota_bytes is not None and change.quota_bytes < 0:
            raise BadInput(f"a quota of {change.quota_bytes} bytes: give 0 or more")
        if self._path is None:
            return self._changed(salt, change)
        with system_errors(f"changing {self._path}"), locked(self._path.with_name("limits.lock")):
            self._known = self._read()
            found = self._changed(salt, change)
            self._write(self._path)
        return found

    def forget(self, salt: str) -> bool:
        """Leave that tenant to the settings again; False when nothing was decided."""
        if self._path is None:
            return self._known.pop(salt, None) is not None
        with system_errors(f"changing {self._path}"), locked(self._path.with_name("limits.lock")):
            self._known = self._read()
            was = self._known.pop(salt, None) is not None
            self._write(self._path)
        return was

    def _changed(self, salt: str, change: TenantLimits) -> TenantLimits:
        old = self._known.get(salt, TenantLimits())
        quota = old.quota_bytes if change.quota_bytes is None else change.quota_bytes
        priority = old.priority if change.priority is None else change.priority
        self._known = {**self._known, salt: TenantLimits(quota, priority)}
        return self._known[salt]

    def _write(self, path: Path) -> None:
        temporary = path.with_name(f"limits.{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(self._known))
        temporary.replace(path)

    def _read(self) -> dict[str, TenantLimits]:
        if self._path is None:
            return self._known
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, TenantLimits])
        except (OSError, msgspec.MsgspecError):
            return {}
