"""Writes to a remote, which may go on after their callers gave up: the last wish about a block holds.

put    wanted ──> write waits for a thread ──> written ──> removed again where it was dropped meanwhile
drop   unwanted ──> remove waits for a thread ──> removed, unless it is wanted again

A write waits for what an earlier caller left running on the same block, so that it undoes no later wish. A
removal beside a write does not wait: one that hangs past a later put takes the block, which the tier's next
look at the remote tells.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kdn.core import BlockKey
from kdn.store.tiers.remote.client import Remote

__all__ = ["Uploads"]


class _Upload:
    """What is under way on one block."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        """Held by a write with the removal after it, or by a removal."""
        self.count = 0
        """Callers that wait, and calls that run though theirs may have left."""
        self.is_wanted = False


class Uploads:
    """The writes to `remote` that are under way in this process. Safe from several threads."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._uploads: dict[BlockKey, _Upload] = {}

    def keys(self) -> list[BlockKey]:
        """The blocks of which a write, or a removal, waits or runs."""
        with self._lock:
            return list(self._uploads)

    def is_wanted(self, key: BlockKey) -> bool:
        """Was the block asked for last, rather than dropped? To be asked inside `wanted` or `unwanted`."""
        with self._lock:
            return key in self._uploads and self._uploads[key].is_wanted

    def is_leaving(self, key: BlockKey) -> bool:
        """Is the block being dropped? Then a tier that still knows of it has it no more."""
        with self._lock:
            return key in self._uploads and not self._uploads[key].is_wanted

    @contextmanager
    def wanted(self, key: BlockKey) -> Iterator[None]:
        """While a caller waits for its `write`: the block is to be there, though it was dropped before."""
        with self._under_way(key, is_wanted=True):
            yield

    @contextmanager
    def unwanted(self, key: BlockKey) -> Iterator[None]:
        """While a caller waits for its `remove`: the block is not to be there."""
        with self._under_way(key, is_wanted=False):
            yield

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        """Write the block, and remove it if it was dropped meanwhile; one that nobody wants any more when
        this begins is not written. Raises what the remote raises."""
        with self._begun(key, is_wanted=True) as upload:
            if upload is None:
                return
            with upload.running:
                try:
                    if upload.is_wanted:  # still, after it waited for another write
                        self._remote.write(key, note, data)
                finally:
                    if not upload.is_wanted:
                        self._remote.remove(key)

    def remove(self, key: BlockKey) -> bool:
        """Remove the block, unless it is wanted again when this begins; False when it was not there.

        A write that runs is not waited for: it removes the block once more. Raises what the remote raises.
        """
        with self._begun(key, is_wanted=False) as upload:
            if upload is None:
                return False
            is_alone = upload.running.acquire(blocking=False)
            try:
                return self._remote.remove(key)
            finally:
                if is_alone:
                    upload.running.release()

    @contextmanager
    def _under_way(self, key: BlockKey, *, is_wanted: bool) -> Iterator[None]:
        with self._lock:
            upload = self._uploads.setdefault(key, _Upload())
            upload.is_wanted = is_wanted
            upload.count += 1
        try:
            yield
        finally:
            self._leave(key, upload)

    @contextmanager
    def _begun(self, key: BlockKey, *, is_wanted: bool) -> Iterator[_Upload | None]:
        """None where its caller has left, or where the contrary was asked for since."""
        with self._lock:
            upload = self._uploads.get(key)
            if upload is not None and upload.is_wanted != is_wanted:
                upload = None
            if upload is not None:
                upload.count += 1
        try:
            yield upload
        finally:
            if upload is not None:
                self._leave(key, upload)

    def _leave(self, key: BlockKey, upload: _Upload) -> None:
        with self._lock:
            upload.count -= 1
            if not upload.count:
                del self._uploads[key]
