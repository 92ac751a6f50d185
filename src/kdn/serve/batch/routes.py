"""/v1/files and /v1/batches, in the shapes of OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Query, Response
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message

from kdn.errors import StoreError
from kdn.serve.auth import LOCAL, Caller, caller_of, own_scope, read_keys
from kdn.serve.batch.multipart import FormPart, read_form
from kdn.serve.batch.runner import BatchRunner
from kdn.serve.batch.shapes import BatchRecord, FileRecord
from kdn.serve.batch.store import BatchFolder
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_NAME_CHARS, Name, bounded_router
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.responses import json_response

__all__ = ["BatchBody", "Batches", "batch_routes"]

_log = logging.getLogger(__name__)

_WINDOW_S = 24 * 3600
_LEAST_EXPIRY_S, _MOST_EXPIRY_S = 3600, 30 * 24 * 3600
_PURPOSES = ("batch", "user_data")
_STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
Record = TypeVar("Record", FileRecord, BatchRecord)


class ExpiryBody(BaseModel):
    """When a file goes by itself."""

    model_config = _STRICT
    anchor: Literal["created_at"]
    """From when the seconds count."""
    seconds: int = Field(ge=_LEAST_EXPIRY_S, le=_MOST_EXPIRY_S)
    """An hour to 30 days."""


class BatchBody(BaseModel):
    """Requests of a file, to be answered within a day."""

    model_config = _STRICT
    input_file_id: Name
    """A file of lines `{"custom_id", "method": "POST", "url", "body"}`."""
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    """The path that every line names."""
    completion_window: Literal["24h"]
    """Lines without an answer by then are told as errors."""
    metadata: dict[str, str] | None = Field(None, max_length=16)
    """Labels, which come back with the batch."""
    output_expires_after: ExpiryBody | None = None
    """When the files of answers go; without it they are kept until they are deleted."""


class Batches:
    """The folder and the runner of one server, from its start to its stop."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._folder: BatchFolder | None = None
        self._runner: BatchRunner | None = None
        self._why_not = "this server keeps no files: batches need a folder"
        self._threads = CapacityLimiter(4)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Batches are worked on inside. What is left at the end, the next server goes on with."""
        context, settings = self._context, self._context.settings
        if settings.batch_folder is None:
            yield
            return
        try:
            folder = BatchFolder(settings.batch_folder, settings.batch, context.clock)
        except StoreError as error:
            self._why_not = str(error)
            yield
            return
        keys = read_keys(settings)
        callers = {key.caller.name: key.caller for key in keys} or {LOCAL.name: LOCAL}
        runner = BatchRunner(
            folder,
            _sender(app),
            callers,
            settings.batch,
            context.clock,
            context.new_id,
            lambda: context.shutdown.has_begun,
        )
        self._folder, self._runner = folder, runner
        runner.resume()
        try:
            yield
        finally:
            await runner.close()
            folder.close()

    @property
    def folder(self) -> BatchFolder:
        """Raises Refused (501) where batches are not taken."""
        if self._folder is None:
            raise Refused(self._why_not, status=501, code="not_available")
        return self._folder

    @property
    def runner(self) -> BatchRunner:
        assert self._runner is not None, "the folder was asked for before"
        return self._runner

    async def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a verb of the folder returns, beside the event loop."""
        return await run_sync(work, *arguments, limiter=self._threads)

    def new_file(self, form: Mapping[str, FormPart], owner: str) -> FileRecord:
        """The record of an upload. Raises Refused for a form that lacks something."""
        file, purpose = form.get("file"), form.get("purpose")
        if file is None or file.filename is None:
            raise Refused("the form has no file", param="file")
        if purpose is None or purpose.text not in _PURPOSES:
            raise Refused(f"purpose must be one of {', '.join(_PURPOSES)}", param="purpose")
        now = self._context.created()
        keep_s = _expiry(form)
        return FileRecord(
            id=f"file-{self._context.new_id()}",
            bytes=len(file.content),
            created_at=now,
            expires_at=None if keep_s is None else now + keep_s,
            filename=file.filename[:MAX_NAME_CHARS],
            purpose=purpose.text,
            owner=owner,
        )

    def new_batch(self, body: BatchBody, owner: str) -> BatchRecord:
        """Raises Refused for a file that is not the caller's, or not for batches."""
        file = self.folder.file(owner, body.input_file_id, param="input_file_id")
        if file.purpose != "batch":
            raise Refused(
                f"the file's purpose is {file.purpose!r}; upload it with the purpose 'batch'",
                param="input_file_id",
            )
        now, after = self._context.created(), body.output_expires_after
        return BatchRecord(
            id=f"batch_{self._context.new_id()}",
            endpoint=body.endpoint,
            input_file_id=file.id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + _WINDOW_S,
            metadata=body.metadata,
            owner=owner,
            output_expires_s=None if after is None else after.seconds,
        )


def batch_routes(batches: Batches) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = bounded_router()
    _add_file_routes(router, batches)
    _add_batch_routes(router, batches)
    return router


def _add_file_routes(router: APIRouter, batches: Batches) -> None:
    @router.post("/v1/files")
    async def upload(http: HttpRequest) -> Response:
        folder, owner = batches.folder, caller_of(http.scope).name
        form = read_form(http.headers.get("content-type", ""), await http.body())
        record = batches.new_file(form, owner)
        await batches.call(folder.add_file, record, form["file"].content)
        return json_response(record.shown())

    @router.get("/v1/files")
    async def files(
        http: HttpRequest,
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        found = await batches.call(batches.folder.files, caller_of(http.scope).name)
        found = [one for one in found if purpose in (None, one.purpose)]
        return _page(found if order == "asc" else found[::-1], after, limit)

    @router.get("/v1/files/{file_id}")
    async def file(file_id: str, http: HttpRequest) -> Response:
        found = await batches.call(batches.folder.file, caller_of(http.scope).name, file_id)
        return json_response(found.shown())

    @router.get("/v1/files/{file_id}/content")
    async def content(file_id: str, http: HttpRequest) -> Response:
        found = await batches.call(batches.folder.file, caller_of(http.scope).name, file_id)
        path = batches.folder.path(found.id)
        return FileResponse(path, media_type="application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def remove(file_id: str, http: HttpRequest) -> Response:
        await batches.call(batches.folder.remove_file, caller_of(http.scope).name, file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})


def _add_batch_routes(router: APIRouter, batches: Batches) -> None:
    @router.post("/v1/batches")
    async def create(body: BatchBody, http: HttpRequest) -> Response:
        batch = await batches.call(batches.new_batch, body, caller_of(http.scope).name)
        await batches.call(batches.folder.add_batch, batch)
        batches.runner.begin(batch)
        return json_response(batch.shown())

    @router.get("/v1/batches")
    async def many(
        http: HttpRequest, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        found = await batches.call(batches.folder.batches, caller_of(http.scope).name)
        return _page(found[::-1], after, limit)

    @router.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str, http: HttpRequest) -> Response:
        found = batches.folder.batch(caller_of(http.scope).name, batch_id)
        return json_response(found.shown())

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, http: HttpRequest) -> Response:
        found = batches.folder.batch(caller_of(http.scope).name, batch_id)
        if found.status not in ("validating", "in_progress"):
            raise Refused(f"the batch is {found.status}: it cannot be cancelled", status=409)
        await batches.runner.cancel(found)
        return json_response(found.shown())


def _page(found: Sequence[FileRecord | BatchRecord], after: str | None, limit: int) -> Response:
    """What follows `after`, `limit` at most. Raises Refused for an id that is not in the list."""
    start = 0
    if after is not None:
        ids = [one.id for one in found]
        if after not in ids:
            raise Refused(f"there is no {after!r:.80} in this list", param="after")
        start = ids.index(after) + 1
    page = found[start : start + limit]
    return json_response(
        {
            "object": "list",
            "data": [one.shown() for one in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > start + limit,
        }
    )


def _expiry(form: Mapping[str, FormPart]) -> int | None:
    """Of `expires_after[anchor]` and `expires_after[seconds]`, as forms spell them."""
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    anchor = form.get("expires_after[anchor]")
    if anchor is None or anchor.text != "created_at":
        raise Refused("expires_after.anchor must be created_at", param="expires_after.anchor")
    text = seconds.text
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    if not is_number or not _LEAST_EXPIRY_S <= int(text) <= _MOST_EXPIRY_S:
        raise Refused(
            f"expires_after.seconds is {text!r:.20}; it must be {_LEAST_EXPIRY_S} to {_MOST_EXPIRY_S}",
            param="expires_after.seconds",
        )
    return int(text)


def _sender(app: ASGIApp) -> Callable[[str, bytes, Caller], Any]:
    """Requests through the application itself, so that a line means what it means to the route."""

    async def send(path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        status, pieces, has_body = 0, list[bytes](), True

        async def receive() -> Message:
            nonlocal has_body
            if has_body:
                has_body = False
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()  # this client never leaves: its task is cancelled
            return {"type": "http.disconnect"}

        async def hear(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                pieces.append(message.get("body", b""))

        try:
            await app(own_scope(path, body, caller), receive, hear)
        except Exception:
            if not status:
                raise
            # The application answers for a fault of its own and raises it on, for a log.
            _log.exception("a line for %s failed", path)
        return status, b"".join(pieces)

    return send
