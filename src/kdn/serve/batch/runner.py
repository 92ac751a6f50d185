"""Works off batches: checks the lines, sends each through the server's own routes, keeps the answers.

    validating ─> in_progress ─> finalizing ─> completed
        │ a line is no request       │ cancelled or out of time: what was answered is kept
        v                            v
      failed               cancelling ─> cancelled, expired

A stopped server leaves its batches as they stand; the next one answers the lines that have no answer yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO, Any

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from kdn.clock import Clock
from kdn.errors import NoSpace
from kdn.machine.files import system_errors
from kdn.machine.text import counted
from kdn.serve.auth import Caller
from kdn.serve.batch.shapes import BatchCounts, BatchError, BatchRecord, FileRecord
from kdn.serve.batch.store import BatchFolder, whole_lines
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_NAME_CHARS, check_unicode, read_json
from kdn.serve.settings import BatchLimits

__all__ = ["BatchRunner", "Send"]

_MAX_ERRORS = 100
"""Of a batch that has failed; more are not told."""
_LOOK_S = 0.5
"""How often a running batch is asked whether its time is over."""
_THREADS = 4
"""That read or write whole files of batches; there may be many batches."""
_BUSY = frozenset({429, 503})
_AGAIN_S = 1.0
"""After so long a line is sent again that found the server full, and a batch goes on that found no room."""

_log = logging.getLogger(__name__)

Send = Callable[[str, bytes, Caller], Awaitable[tuple[int, bytes]]]
"""Sends a body to a path for a caller: the status and the body of the answer."""


@dataclass(frozen=True)
class _Line:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


@dataclass
class _Run:
    """A batch that is worked on, and where its answers go."""

    batch: BatchRecord
    caller: Caller
    lines: Iterator[_Line]
    output: FileIO
    errors: FileIO
    answered: set[str] = field(default_factory=set)


class BatchRunner:
    """Runs every batch that has not ended, each as a task of the event loop."""

    def __init__(
        self,
        folder: BatchFolder,
        send: Send,
        callers: Mapping[str, Caller],
        limits: BatchLimits,
        clock: Clock,
        new_id: Callable[[], str],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`callers` by their names, as keys are known now: a batch whose key has gone fails."""
        self._folder, self._send, self._callers = folder, send, callers
        self._limits, self._clock, self._new_id = limits, clock, new_id
        self._is_stopping = is_stopping
        self._places = asyncio.Semaphore(limits.width)
        self._beside = partial(run_sync, limiter=CapacityLimiter(_THREADS))
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Go on with what an earlier server has left."""
        for batch in self._folder.batches():
            if not batch.has_ended:
                self.begin(batch)

    def begin(self, batch: BatchRecord) -> None:
        """Work on a batch until it has ended."""
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    async def cancel(self, batch: BatchRecord) -> None:
        """Ask a batch to end; its lines under way are given up, and its answers are kept."""
        batch.status, batch.cancelling_at = "cancelling", self._now()
        await run_sync(self._folder.save, batch)

    async def close(self) -> None:
        """Leave every batch as it stands."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one batch ---

    async def _run(self, batch: BatchRecord) -> None:
        try:
            while not await self._has_room(batch):  # noqa: ASYNC110  nothing says when there is room
                await asyncio.sleep(_AGAIN_S)
        except Exception as error:  # noqa: BLE001  one batch may fail in any way, and none other with it
            _log.exception("the batch %s failed", batch.id)
            await self._fail(batch, [BatchError(code="internal_error", message=str(error))])

    async def _has_room(self, batch: BatchRecord) -> bool:
        """Go through the batch; False where the disk is full. Then its answers so far are kept."""
        try:
            await self._through(batch)
        except NoSpace as error:
            _log.warning("the batch %s waits for room: %s", batch.id, error)
            return False
        return True

    async def _through(self, batch: BatchRecord) -> None:
        """All of a batch, from where it is. It can be called again after NoSpace."""
        if batch.has_ended:
            await run_sync(self._folder.save, batch)
            return
        caller = self._callers.get(batch.owner)
        if caller is None:
            gone = "the API key that made this batch is not known to the server any longer"
            await self._fail(batch, [BatchError(code="key_revoked", message=gone)])
            return
        path = self._folder.path(batch.input_file_id)
        if batch.status == "validating":
            total, errors = await self._beside(_validate, path, batch.endpoint, self._limits.lines)
            if errors:
                await self._fail(batch, errors)
                return
            batch.request_counts.total = total
            if batch.status == "validating":  # it may have been cancelled meanwhile
                batch.status, batch.in_progress_at = "in_progress", self._now()
            await run_sync(self._folder.save, batch)
        with system_errors(f"writing the answers of {batch.id}"), ExitStack() as opened:
            run = await self._beside(self._open, batch, caller, path, opened)
            if batch.finalizing_at is None:
                await self._answer_all(run)
            await self._beside(self._end, run)

    def _open(self, batch: BatchRecord, caller: Caller, path: Path, opened: ExitStack) -> _Run:
        """The batch with what is answered already, its files opened to write on."""
        written = self._folder.results(batch.id)
        answered: set[str] = set()
        if batch.finalizing_at is None:
            done, failed = (
                [json.loads(one)["custom_id"] for one in whole_lines(p)] for p in written
            )
            answered.update(done, failed)
            total = batch.request_counts.total
            batch.request_counts = BatchCounts(total, len(done), len(failed))
        output, errors = (opened.enter_context(file.open("ab", 0)) for file in written)
        lines = opened.enter_context(path.open("rb"))
        left = (line for line in _lines(lines) if line.custom_id not in answered)
        return _Run(batch, caller, left, output, errors, answered)

    async def _answer_all(self, run: _Run) -> None:
        """Every line, until the batch is cancelled or out of time."""
        batch = run.batch
        workers = [
            asyncio.ensure_future(self._work(run))
            for _ in range(min(self._limits.width, batch.request_counts.total))
        ]
        try:
            left = set(workers)
            while left and batch.status != "cancelling":
                if self._clock.wall() >= batch.expires_at:
                    batch.expired_at = self._now()
                    break
                done, left = await asyncio.wait(left, timeout=_LOOK_S)
                for one in done:
                    one.result()
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, run: _Run) -> None:
        for line in run.lines:
            while True:
                async with self._places:
                    status, body = await self._answer(run, line)
                if not (status in _BUSY and _is_overloaded(body)):
                    break
                await asyncio.sleep(_AGAIN_S)
            self._note(run, line, status, body)

    async def _answer(self, run: _Run, line: _Line) -> tuple[int, bytes]:
        if self._is_stopping():
            await asyncio.Event().wait()  # until `close`
        body = json.dumps(
            line.body
        ).encode()  # also what is no Unicode: the route refuses that line
        answer = await self._send(run.batch.endpoint, body, run.caller)
        if answer[0] != _OK and self._is_stopping():
            await asyncio.Event().wait()
        return answer

    def _note(self, run: _Run, line: _Line, status: int, body: bytes) -> None:
        counts = run.batch.request_counts
        told = {
            "id": f"batch_req_{self._new_id()}",
            "custom_id": line.custom_id,
            "response": {
                "status_code": status,
                "request_id": self._new_id(),
                "body": msgspec.Raw(body),
            },
            "error": None,
        }
        _write(run.output if status == _OK else run.errors, told)
        if status == _OK:
            counts.completed += 1
        else:
            counts.failed += 1
        run.answered.add(line.custom_id)

    def _end(self, run: _Run) -> None:
        """What was answered becomes files. Every step may be done again by the next server."""
        batch = run.batch
        if batch.finalizing_at is None:
            if batch.expired_at is not None:
                self._tell_expired(run)
            elif batch.status != "cancelling":
                batch.status = "finalizing"
            batch.finalizing_at = self._now()
            batch.output_file_id = f"file-{self._new_id()}"
            batch.error_file_id = f"file-{self._new_id()}"
            self._folder.save(batch)
        for file in (run.output, run.errors):
            file.close()
        output, errors = self._folder.results(batch.id)
        batch.output_file_id = self._result(batch, batch.output_file_id, output, "output")
        batch.error_file_id = self._result(batch, batch.error_file_id, errors, "error")
        if batch.expired_at is not None:
            batch.status = "expired"
        elif batch.status == "cancelling":
            batch.status, batch.cancelled_at = "cancelled", self._now()
        else:
            batch.status, batch.completed_at = "completed", self._now()
        self._folder.save(batch)

    def _tell_expired(self, run: _Run) -> None:
        why = {"code": "batch_expired", "message": "there was no answer before the batch's end"}
        with self._folder.path(run.batch.input_file_id).open("rb") as lines:
            for line in _lines(lines):
                if line.custom_id in run.answered:
                    continue
                told = {"id": f"batch_req_{self._new_id()}", "custom_id": line.custom_id}
                _write(run.errors, told | {"response": None, "error": why})

    def _result(
        self, batch: BatchRecord, file_id: str | None, written: Path, what: str
    ) -> str | None:
        """A file of the batch's owner; none where nothing was written."""
        if file_id is None:
            written.unlink()
            return None
        now, keep_s = self._now(), batch.output_expires_s
        record = FileRecord(
            id=file_id,
            bytes=0,
            created_at=now,
            expires_at=None if keep_s is None else now + keep_s,
            filename=f"{batch.id}_{what}.jsonl",
            purpose="batch_output",
            owner=batch.owner,
        )
        return file_id if self._folder.add_result(record, written) else None

    async def _fail(self, batch: BatchRecord, errors: list[BatchError]) -> None:
        batch.status, batch.failed_at, batch.errors = "failed", self._now(), errors
        await run_sync(self._folder.save, batch)

    def _now(self) -> int:
        return int(self._clock.wall())


_OK = 200


def _write(file: FileIO, told: dict[str, Any]) -> None:
    """A line, handed to the system whole: a killed server loses none that was written.

    Of a line that a full disk cuts off nothing is left: other lines may find room before the batch stops.
    """
    end = file.seek(0, os.SEEK_END)
    rest = memoryview(msgspec.json.encode(told) + b"\n")
    try:
        while rest.nbytes:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(end)
        raise


def _is_overloaded(body: bytes) -> bool:
    """Was the line refused only because too much is being worked on?"""
    with suppress(ValueError, KeyError, TypeError):
        return bool(json.loads(body)["error"]["code"] == "overloaded")
    return False


# --- what a line must be ---------------------------------------------------------------------


def _lines(file: IO[bytes]) -> Iterator[_Line]:
    """The requests of a file that was found to be valid."""
    for text in filter(None, map(bytes.strip, file)):
        found = json.loads(text)
        yield _Line(found["custom_id"], found["body"])


def _validate(path: Path, endpoint: str, most: int) -> tuple[int, list[BatchError]]:
    """How many requests the file holds, and what is wrong with it."""
    errors: list[BatchError] = []
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            found = _fault(text, endpoint, seen)
            if found is not None and len(errors) < _MAX_ERRORS:
                found.line = number
                errors.append(found)
            if len(seen) > most:
                too_many = (
                    f"the file has more than {counted(most, 'request')}; send several batches"
                )
                return most, [BatchError(code="too_many_requests", message=too_many)]
    if not seen and not errors:
        errors.append(BatchError(code="empty_file", message="the file holds no request"))
    return len(seen), errors


def _fault(text: bytes, endpoint: str, seen: set[str]) -> BatchError | None:
    """What is wrong with a line; its custom_id joins those that were seen."""
    try:
        found = read_json(text)
    except (ValueError, Refused) as error:
        return BatchError(code="invalid_json_line", message=f"the line is not valid JSON: {error}")
    if not isinstance(found, dict):
        return BatchError(code="invalid_json_line", message="the line is no JSON object")
    name = found.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        said = f"custom_id must be a text of 1 to {MAX_NAME_CHARS} characters"
        return BatchError(code="missing_required_parameter", message=said, param="custom_id")
    try:
        check_unicode(name, "custom_id")
    except Refused as error:
        return BatchError(code="invalid_custom_id", message=str(error), param="custom_id")
    if name in seen:
        said = f"custom_id {name!r:.80} stands on an earlier line too; each needs its own"
        return BatchError(code="duplicate_custom_id", message=said, param="custom_id")
    seen.add(name)
    return _fault_of(found, endpoint)


def _fault_of(found: dict[str, Any], endpoint: str) -> BatchError | None:
    """What is wrong with a line beside its name."""
    if found.get("method") != "POST":
        said = f"method is {found.get('method')!r:.40}; it must be POST"
        return BatchError(code="invalid_method", message=said, param="method")
    if found.get("url") != endpoint:
        said = f"url is {found.get('url')!r:.80}; the batch's endpoint is {endpoint}"
        return BatchError(code="mismatched_endpoint", message=said, param="url")
    body = found.get("body")
    if not isinstance(body, dict):
        return BatchError(code="invalid_body", message="body must be a JSON object", param="body")
    if body.get("stream"):
        said = "an answer of a batch is not streamed; leave out stream"
        return BatchError(code="invalid_body", message=said, param="body.stream")
    return None
