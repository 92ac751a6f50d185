"""The console's page, which holds nothing, and its data, which an operator is asked for a key for."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import Any, Literal

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Request, Response

from kdn.serve.auth import may_operate
from kdn.serve.console.data import ConsoleData
from kdn.serve.errors import Refused
from kdn.serve.metrics import RecentRequests
from kdn.serve.settings import ServeSettings
from kdn.serve.store.manage import answer, read_body

__all__ = ["mount_console", "page_routes"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: run and load what this server sends, and nothing of anybody else."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.svg": ("console.svg", "image/svg+xml"),
}
_MOST_ROWS = 1000
_THREADS = 4
"""That look, and as many that act: pages that wait for a slow store keep nobody else waiting."""


class _Act(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    action: str
    ids: list[str]
    to: str = ""


def mount_console(
    app: FastAPI, data: ConsoleData, settings: ServeSettings, *, has_admin: bool
) -> None:
    """The page and its data. With `has_admin` a key of the store's admin opens the data; without one
    they are open on loopback where callers are asked for no key, and nowhere else."""

    def check(request: Request) -> None:
        if not may_operate(request.scope, settings, has_admin=has_admin):
            raise Refused(
                "the console needs the admin key of the store: Authorization: Bearer KEY"
                if has_admin
                else "the console is closed where callers need a key and no admin key is set; set "
                "serve.store_key (KDN_SERVE_STORE_KEY) and open it with that",
                status=401 if has_admin else 403,
            )

    app.include_router(page_routes())
    app.include_router(_data_routes(data, app.state.recent, check))


def page_routes() -> APIRouter:
    """The files of the page."""
    router = APIRouter(include_in_schema=False)
    folder = files("kdn.serve.console") / "static"

    def serve(path: str, name: str, kind: str) -> None:
        body = (folder / name).read_bytes()

        async def send() -> Response:
            return Response(body, media_type=kind, headers=_HEADERS)

        router.add_api_route(path, send, methods=["GET"])

    for path, (name, kind) in _FILES.items():
        serve(path, name, kind)
    return router


def _data_routes(
    data: ConsoleData, recent: RecentRequests, check: Callable[[Request], None]
) -> APIRouter:
    router = APIRouter(prefix="/v1/kdn/console")
    beside = partial(to_thread.run_sync, limiter=CapacityLimiter(_THREADS))
    acting = partial(to_thread.run_sync, limiter=CapacityLimiter(_THREADS))

    @router.get("")
    async def overview(request: Request) -> Response:
        check(request)
        return answer(await beside(data.overview))

    @router.get("/texts")
    async def texts(
        request: Request,
        q: str = "",
        sort: str = "size_bytes",
        offset: int = 0,
        limit: int = 100,
        form: Literal["json", "csv"] = "json",
    ) -> Response:
        """What is stored, a text a row; `form=csv` gives every row as a table."""
        check(request)
        rows = await beside(data.rows, q, sort)
        if form == "csv":
            return _csv("texts.csv", (_flat(asdict(row)) for row in rows))
        shown = rows[max(offset, 0) :][: max(1, min(limit, _MOST_ROWS))]
        return answer({"total": len(rows), "rows": [asdict(row) for row in shown]})

    @router.get("/requests.csv")
    async def requests(request: Request) -> Response:
        """The last requests as a table."""
        check(request)
        return _csv("requests.csv", [_request_row(one) for one in recent.all()])

    @router.get("/predicted")
    async def predicted(request: Request) -> Response:
        """By request id, what the time model says of the prompt, in milliseconds."""
        check(request)
        times = {one.request.id: data.predicted_ms(one) for one in recent.all()}
        return answer(times)

    @router.post("/act")
    async def act(request: Request) -> Response:
        check(request)
        asked = await read_body(request, _Act)
        done = await acting(data.act, asked.action, asked.ids, asked.to)
        return answer(done)

    return router


def _request_row(record: Any) -> dict[str, Any]:
    usage = record.finish.usage if record.finish is not None else None
    numbers = ("prompt_tokens", "completion_tokens", "exact", "blended", "shared", "lossy", "recomputed",
               "stored", "queue_ms", "load_ms", "ttft_ms", "total_ms")  # fmt: skip
    row = {"id": record.request.id, "created": round(record.began_wall_s, 3)}
    return row | {name: getattr(usage, name, "") for name in numbers}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"tiers": "+".join(row["tiers"])}


def _csv(name: str, rows: Iterable[Mapping[str, Any]]) -> Response:
    """A table with a line of names; a cell that a spreadsheet would compute is quoted for it."""
    written, table = io.StringIO(), list(rows)
    if table:
        writer = csv.DictWriter(written, list(table[0]), lineterminator="\n")
        writer.writeheader()
        for row in table:
            writer.writerow({key: _cell(value) for key, value in row.items()})
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(written.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return value
