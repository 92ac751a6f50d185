"""Where files and batches lie: a folder that one server holds at a time, and that outlives it.

FOLDER/lock            held by the server that works here
FOLDER/files/ID.json   a file's record, published last: a file without one is no file
FOLDER/files/ID.data   its bytes
FOLDER/batches/ID.json a batch
FOLDER/batches/ID.output.jsonl, ID.errors.jsonl   answers so far, a line each
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from kdn.clock import Clock
from kdn.errors import StoreError
from kdn.machine.files import make_private, publish_file, system_errors, try_lock
from kdn.machine.text import counted
from kdn.serve.batch.shapes import BatchRecord, FileRecord
from kdn.serve.errors import Refused
from kdn.serve.settings import BatchLimits

__all__ = ["BatchFolder", "whole_lines"]

Record = TypeVar("Record", FileRecord, BatchRecord)


class BatchFolder:
    """Files and batches of all callers; each caller sees its own. Safe from several threads."""

    def __init__(self, folder: Path, limits: BatchLimits, clock: Clock) -> None:
        """Raises StoreError when another server holds the folder, or it cannot be used."""
        self._limits, self._clock = limits, clock
        self._guard = threading.RLock()
        self._files_in, self._batches_in = folder / "files", folder / "batches"
        with system_errors(f"opening {folder}"):
            make_private(self._files_in)
            make_private(self._batches_in)
            lock = try_lock(folder / "lock")
        if lock is None:
            raise StoreError(
                f"{folder}: another server works on the batches here; stop it, or give this one "
                "another home"
            )
        self._lock = lock
        self._files = dict(_read_all(self._files_in, FileRecord))
        self._batches = dict(_read_all(self._batches_in, BatchRecord))
        self._remove_strays()

    def close(self) -> None:
        """Release the folder for another server."""
        self._lock.close()

    # --- files ---

    def add_file(self, record: FileRecord, content: bytes) -> None:
        """Store a file. Raises Refused beyond the caller's bounds, NoSpace when the disk is full."""
        with self._guard:
            self._forget_expired()
            self._refuse_full(record.owner, record.bytes)
            path = self.path(record.id)
            try:
                publish_file(path, content)
                self._publish(record)
            except BaseException:
                path.unlink(missing_ok=True)  # or a full disk would stay full
                raise

    def _refuse_full(self, owner: str, size_bytes: int) -> None:
        """Raises Refused where the caller may not have one more file, or none of that size."""
        own = [one for one in self._files.values() if one.owner == owner]
        held = sum(one.bytes for one in own)
        if len(own) >= self._limits.files or held + size_bytes > self._limits.caller_bytes:
            raise Refused(
                f"this key has {counted(len(own), 'file')} of {held} bytes; it may have "
                f"{self._limits.files} of {self._limits.caller_bytes}: delete some first",
                code="too_many_files",
            )

    def add_result(self, record: FileRecord, written: Path) -> bool:
        """Make a file of what a batch has written; False where it has written nothing.

        Where it raises StoreError it can be called again: nothing of what was written is lost.
        """
        with self._guard, system_errors(f"storing {written}"):
            path = self.path(record.id)
            if written.stat().st_size:
                written.replace(path)
            else:  # nothing, or an earlier call has moved it
                written.unlink()
            if not path.exists():
                return False
            record.bytes = path.stat().st_size
            self._publish(record)
            return True

    def _publish(self, record: FileRecord) -> None:
        publish_file(self._files_in / f"{record.id}.json", msgspec.json.encode(record))
        self._files[record.id] = record

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file of this folder lie."""
        return self._files_in / f"{file_id}.data"

    def file(self, owner: str, file_id: str, param: str | None = None) -> FileRecord:
        """The caller's file. Raises Refused (404): also for one of another caller."""
        with self._guard:
            self._forget_expired()
            found = self._files.get(file_id)
        if found is None or found.owner != owner:
            raise Refused(f"there is no file {file_id!r:.80}", status=404, param=param)
        return found

    def files(self, owner: str) -> list[FileRecord]:
        """The caller's, oldest first."""
        with self._guard:
            self._forget_expired()
            return sorted(
                (one for one in self._files.values() if one.owner == owner),
                key=lambda one: (one.created_at, one.id),
            )

    def remove_file(self, owner: str, file_id: str) -> None:
        """Delete the caller's file. Raises Refused for one that is not there, or that a batch reads."""
        with self._guard:
            self.file(owner, file_id)
            for batch in self.batches(owner):
                if batch.input_file_id == file_id and not batch.has_ended:
                    raise Refused(
                        f"the batch {batch.id} reads this file: cancel it first", status=409
                    )
            self._drop(file_id)

    def _drop(self, file_id: str) -> None:
        self._files.pop(file_id, None)
        (self._files_in / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def _forget_expired(self) -> None:
        now = self._clock.wall()
        read = {one.input_file_id for one in self._batches.values() if not one.has_ended}
        for one in list(self._files.values()):
            if one.expires_at is not None and one.expires_at <= now and one.id not in read:
                self._drop(one.id)

    # --- batches ---

    def add_batch(self, batch: BatchRecord) -> None:
        """Store a batch; of very many the oldest that has ended is deleted.

        Raises Refused when too many run, and when the caller has no place for a file of answers.
        """
        with self._guard:
            own = self.batches(batch.owner)
            ended = [one for one in own if one.has_ended]
            unfinished, most = len(own) - len(ended), self._limits.unfinished
            if unfinished >= most:
                raise Refused(
                    f"{unfinished} batches of this key have not ended, and it may have {most}: wait"
                    " for one to end, or cancel one",
                    status=429,
                    code="too_many_batches",
                    retry_after_s=60,
                )
            self._refuse_full(batch.owner, 0)
            for one in ended[: max(len(own) + 1 - self._limits.batches, 0)]:
                self._batches.pop(one.id)
                (self._batches_in / f"{one.id}.json").unlink(missing_ok=True)
            self.save(batch)

    def save(self, batch: BatchRecord) -> None:
        """Write the batch as it is now."""
        with self._guard:
            publish_file(self._batches_in / f"{batch.id}.json", msgspec.json.encode(batch))
            self._batches[batch.id] = batch

    def batch(self, owner: str, batch_id: str) -> BatchRecord:
        """The caller's batch. Raises Refused (404): also for one of another caller."""
        found = self._batches.get(batch_id)
        if found is None or found.owner != owner:
            raise Refused(f"there is no batch {batch_id!r:.80}", status=404)
        return found

    def batches(self, owner: str | None = None) -> list[BatchRecord]:
        """The caller's, or everybody's, oldest first."""
        with self._guard:
            return sorted(
                (one for one in self._batches.values() if owner in (None, one.owner)),
                key=lambda one: (one.created_at, one.id),
            )

    def results(self, batch_id: str) -> tuple[Path, Path]:
        """Where a batch writes its answers and its errors while it runs."""
        stem = self._batches_in / batch_id
        return stem.with_suffix(".output.jsonl"), stem.with_suffix(".errors.jsonl")

    def _remove_strays(self) -> None:
        """Delete what a killed server has left: bytes without a record, temporary files."""
        unfinished = [one for one in self._batches.values() if not one.has_ended]
        running = {one.id for one in unfinished}
        kept = {f"{name}.data" for name in self._files} | {f"{name}.json" for name in self._files}
        # results that were moved, and get their record when their batch goes on
        for one in unfinished:
            kept |= {f"{one.output_file_id}.data", f"{one.error_file_id}.data"}
        for path in self._files_in.iterdir():
            if path.name not in kept:
                path.unlink()
        for path in self._batches_in.iterdir():
            is_record = path.suffix == ".json" and path.stem in self._batches
            if not (is_record or path.name.split(".")[0] in running):
                path.unlink()


def _read_all(folder: Path, kind: type[Record]) -> Iterator[tuple[str, Record]]:
    """Every record that can be read; others are skipped."""
    for path in sorted(folder.glob("[!.]*.json")):
        with suppress(msgspec.MsgspecError, OSError):
            found = msgspec.json.decode(path.read_bytes(), type=kind)
            if found.id == path.stem:
                yield found.id, found


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that was written line by line, without a last one that was cut."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        _remove_cut_line(file)
        file.seek(0)
        yield from file


def _remove_cut_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    while size:
        start = max(size - (1 << 16), 0)
        file.seek(start)
        last = file.read(size - start).rfind(b"\n")
        if last >= 0:
            size = start + last + 1
            break
        size = start
    file.truncate(size)
