"""Blocks in an object store: S3, Google Cloud Storage, Azure, a shared folder, memory.

blocks/ab/KEY.kdn  the encoded block
notes/ab/KEY       its note, written after it: a listing of notes finds only whole blocks
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from kdn.core import BlockKey
from kdn.errors import BadConfig, MissingExtra, Unreachable
from kdn.machine.memory import allocate
from kdn.store.tiers.remote.client import (
    MAX_LISTING_BYTES,
    MAX_NOTE_BYTES,
    ROW_BYTES,
    Remote,
    RemoteChanges,
    block_key,
    first_rows,
    listed,
)

if TYPE_CHECKING:
    from kdn.store.settings import FarSettings

__all__ = ["ObjectRemote"]

_PARALLEL_READS = 16
_READ_TOGETHER = 256
_SIZE_BYTES = 8


class ObjectRemote(Remote):
    """Blocks under `url`: `s3://bucket/prefix`, `gs://`, `az://`, `file:///folder`, `memory:///`.

    `options` are the object store's own (`endpoint`, `region`, `access_key_id`, ...); what is not
    given comes from the environment, as usual for each.  Asking for changes costs a listing: ask seldom.
    """

    name = "objects"
    lists_all = True

    @classmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        if settings.objects_url is None:
            return None
        timeout_s = max(settings.far_timeout_s, 1.0)
        return cls(settings.objects_url, options=settings.object_options, timeout_s=timeout_s)

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        listing_bytes: int = MAX_LISTING_BYTES,
    ) -> None:
        """One listing reads some `listing_bytes` of notes at most; the next one reads on."""
        try:
            import obstore
        except ImportError as error:
            raise MissingExtra("an object-store tier needs: pip install 'kdn[s3]'") from error
        self._obstore: Any = obstore
        self._lock = threading.Lock()
        self._known: set[BlockKey] = set()
        self._missed: set[BlockKey] = set()
        """Were seen to be gone since the last listing: one that is there again is news."""
        self._told = False
        self._listing_bytes = listing_bytes
        self._store = _open(url, dict(options or {}), timeout_s)

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        with self._gate("looking for a block"):
            try:
                found = self._obstore.get(
                    self._store, _block(key), options={"range": (0, num_bytes)}
                )
                return bytes(_body(found, num_bytes)), found.meta["size"]
            except FileNotFoundError:
                self._missed.add(key)
                return None

    def read(self, key: BlockKey, start: int, stop: int) -> bytes | memoryview:
        with self._gate("reading a block"):
            try:
                found = self._obstore.get(
                    self._store, _block(key), options={"range": (start, stop)}
                )
                return _body(found, stop - start)
            except FileNotFoundError:
                return b""

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        sized = data.nbytes.to_bytes(_SIZE_BYTES, "little") + note
        with self._gate("writing a block"):
            self._obstore.put(self._store, _block(key), data)
            self._obstore.put(self._store, _note(key), sized)

    def remove(self, key: BlockKey) -> bool:
        """Drops the note first: what cannot be found any more may then go."""
        with self._gate("dropping a block"):
            self._missed.add(key)
            there = self._drop(_note(key))
            return self._drop(_block(key)) or there

    def changes(self) -> RemoteChanges:
        with self._lock, self._gate("listing blocks"):
            found = [block_key(name) for name, _ in first_rows((n, b"") for n in self._names())]
            keys = {key for key in found if key is not None}
            missed = set(self._missed)
            new = list(keys - (self._known - missed))
            notes = list(self._read_notes(new))
            went = {key for key, note in notes if note is None}
            read = [listed(key, note) for key, note in notes if note is not None]
            added = tuple(one for one in read if one is not None)
            foreign = sum(key is None for key in found) + len(read) - len(added)
            removed = tuple(self._known - keys)
            self._known = keys.difference(new[len(notes) :], went)
            self._missed -= missed
            whole, self._told = not self._told, True
            return RemoteChanges(added, removed, whole=whole, foreign=foreign)

    # --- inside ---

    def _names(self) -> Iterator[str]:
        for page in self._obstore.list(self._store, prefix="notes"):
            for found in page:
                yield found["path"].rpartition("/")[2]

    def _read_notes(self, keys: Iterable[BlockKey]) -> Iterator[tuple[BlockKey, bytes | None]]:
        """The notes of these, until they are as many bytes as a listing may have; None for one that went."""
        names, left_bytes = iter(keys), self._listing_bytes
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            while left_bytes > 0 and (some := list(islice(names, _READ_TOGETHER))):
                notes = list(pool.map(self._read_note, some))
                left_bytes -= sum(ROW_BYTES + len(note) for note in notes if note is not None)
                yield from zip(some, notes, strict=True)

    def _read_note(self, key: BlockKey) -> bytes | None:
        try:
            found = self._obstore.get(self._store, _note(key))
            return bytes(_body(found, _SIZE_BYTES + MAX_NOTE_BYTES))
        except FileNotFoundError:
            return None

    def _drop(self, path: str) -> bool:
        """Object stores say nothing of what was not there, so ask first."""
        try:
            self._obstore.head(self._store, path)
            self._obstore.delete(self._store, path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _gate(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except BaseException as error:
            known = isinstance(error, (self._obstore.exceptions.BaseError, OSError))
            if not (known or _is_panic(error)):
                raise
            reason = str(error).split("\n", 1)[0]
            raise Unreachable(f"{doing} in the object store failed: {reason}") from error


def _open(url: str, options: dict[str, str], timeout_s: float) -> Any:
    """The store at `url`; time-outs are ours, retries the remote caller's business."""
    import obstore.store

    # Its overloads know each store's options by name; ours are whatever the settings say.
    from_url: Any = obstore.store.from_url
    remote = url.partition(":")[0] not in {"file", "memory"}
    kind: dict[str, Any] = {}
    if remote:
        kind = {
            "client_options": {
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=timeout_s),
                "allow_http": options.get("endpoint", "").startswith("http://"),
            },
            "retry_config": {"max_retries": 0},
        }
    elif url.startswith("file:"):
        kind = {"mkdir": True}
    try:
        return from_url(url, **kind, **options)
    except BaseException as error:
        known = isinstance(error, (obstore.exceptions.BaseError, ValueError, TypeError))
        if not (known or _is_panic(error)):
            raise
        reason = str(error).split("\n", 1)[0]
        raise BadConfig(
            f"{url!r} cannot be used as an object store ({reason}); write s3://bucket/prefix, gs://, az:// or"
            " file:///folder"
        ) from error


def _body(found: Any, max_bytes: int) -> memoryview:
    """What a store gives, as it comes; of more than `max_bytes` only a little more is read."""
    data, come = allocate(max_bytes, zeroed=False), 0
    for chunk in found.stream(min_chunk_size=1):
        piece = memoryview(chunk)
        stop = come + piece.nbytes
        if stop > max_bytes:
            return memoryview(bytes(data[:come]) + piece)
        data[come:stop] = piece
        come = stop
    return data[:come]


def _is_panic(error: BaseException) -> bool:
    """Is it what a Rust library raises for its own faults? No Exception: few catch it."""
    return type(error).__name__ == "PanicException"


def _block(key: BlockKey) -> str:
    return f"blocks/{key[:2]}/{key}.kdn"


def _note(key: BlockKey) -> str:
    return f"notes/{key[:2]}/{key}"
