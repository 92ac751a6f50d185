"""GET /v1/kdn/requests: what became of the last requests, and why their prompts were not reused further."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import UNSET, Struct, UnsetType

from kdn.core import Usage
from kdn.model.adapters import adapter_name
from kdn.serve.auth import ADMIN, Caller, caller_of
from kdn.serve.errors import Refused
from kdn.serve.metrics import RequestRecord
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.responses import WhyReport, json_response, why_report
from kdn.serve.telemetry import chrome_trace

__all__ = ["RequestReport", "request_report", "why_routes"]

_Form = Literal["json", "chrome"]


class PromptPiece(Struct):
    """A run of a prompt's tokens that were obtained in the same way."""

    text: str
    role: str
    origin: str
    """`exact`, `lossy`, `shared` (a sibling's, perhaps partly recomputed), `moved` (stored elsewhere,
    partly recomputed) or `computed`."""
    tokens: int


class RequestReport(Struct, kw_only=True):
    """What became of one request."""

    id: str
    object: str = "kdn.request"
    created: float
    model: str
    state: str
    """`running`, `ended` or `failed`."""
    prompt_tokens: int
    completion_tokens: int = 0
    exact: int = 0
    blended: int = 0
    shared: int = 0
    lossy: int = 0
    recomputed: int = 0
    stored: int = 0
    queue_ms: float = 0.0
    load_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    finish_reason: str | None = None
    failure: str = ""
    tiers: dict[str, int] = {}
    why: WhyReport | UnsetType = UNSET
    prompt: list[PromptPiece] | UnsetType = UNSET


class RequestReports(Struct):
    """The last requests of a caller, newest first."""

    data: list[RequestReport]
    object: str = "list"


def why_routes(context: RequestContext) -> APIRouter:
    """The two routes, bound to one server's parts. A request of somebody else is answered as one that
    never was; the admin sees all of them, without their texts."""
    router = APIRouter()

    @router.get("/v1/kdn/requests")
    async def requests(http: HttpRequest, limit: int = 100, form: _Form = "json") -> Response:
        """With `form=chrome` a timeline that Chrome's tracing page and Perfetto open."""
        caller = caller_of(http.scope)
        seen = [one for one in context.recent.all() if _may_see(caller, one)]
        newest = seen[::-1][: max(1, min(limit, 1000))]
        if form == "chrome":
            return json_response(chrome_trace(newest[::-1]))
        return json_response(RequestReports([request_report(one) for one in newest]))

    @router.get("/v1/kdn/requests/{request_id}")
    async def request(
        http: HttpRequest, request_id: str, *, prompt: bool = False, form: _Form = "json"
    ) -> Response:
        caller, record = caller_of(http.scope), context.recent.get(request_id)
        if record is None or not _may_see(caller, record):
            raise Refused(
                f"no request {request_id[:80]!r} is remembered; the last ones are at /v1/kdn/requests",
                status=404,
            )
        if form == "chrome":
            return json_response(chrome_trace([record]))
        report = request_report(record)
        own = record.caller == caller.name
        why, finish = context.model_of(record).why, record.finish
        if finish is not None and why is not None:
            found = await context.in_thread(
                why.explain, record.request, finish.usage, ended_s=record.ended_s
            )
            report.why = why_report(found, with_text=own)
        if finish is not None and prompt and own:
            usage = finish.usage
            report.prompt = await context.in_thread(lambda: list(_pieces(context, record, usage)))
        return json_response(report)

    return router


def _may_see(caller: Caller, record: RequestRecord) -> bool:
    return caller is ADMIN or caller.name == record.caller


def request_report(record: RequestRecord) -> RequestReport:
    """The numbers of a request. Of one that runs only what is known."""
    request, finish = record.request, record.finish
    report = RequestReport(
        id=request.id,
        created=round(record.began_wall_s, 3),
        model=adapter_name(request.adapter or "") or record.model,
        state="failed" if record.failure else "running" if finish is None else "ended",
        prompt_tokens=request.prompt.num_tokens,
        failure=record.failure,
    )
    if finish is not None:
        usage: Any = finish.usage
        for name in (
            "completion_tokens",
            "exact",
            "blended",
            "shared",
            "lossy",
            "recomputed",
            "stored",
        ):
            setattr(report, name, getattr(usage, name))
        for name in ("queue_ms", "load_ms", "ttft_ms", "total_ms"):
            setattr(report, name, round(getattr(usage, name), 3))
        report.tiers = dict(usage.tiers)
        report.finish_reason = str(finish.reason)
    return report


def _pieces(context: RequestContext, record: RequestRecord, usage: Usage) -> Iterator[PromptPiece]:
    """The prompt cut wherever the part or the origin changes."""
    prompt = record.request.prompt
    reused = _reused(usage)
    edges = {0, prompt.num_tokens}
    for _, start, stop in (*reused, *prompt.spans()):
        edges |= {start, stop}
    for start, stop in pairwise(sorted(edges)):
        role = next(str(s.role) for s, a, b in prompt.spans() if a <= start < b)
        origin = next((name for name, a, b in reused if a <= start < b), "computed")
        text = context.model_of(record).vocabulary.decode(
            prompt.token_ids[start:stop], special=True
        )
        yield PromptPiece(text, role, origin, stop - start)


def _reused(usage: Usage) -> list[tuple[str, int, int]]:
    """The runs of a prompt that were not computed, each with its origin."""
    prefix = usage.exact + usage.lossy
    # what was shared in an earlier turn is found again behind the exact prefix
    elsewhere = usage.moved or ((prefix, prefix + usage.shared),)
    origin = "shared" if usage.shared else "moved"
    return [
        ("exact", 0, usage.exact),
        ("lossy", usage.exact, prefix),
        *((origin, start, stop) for start, stop in elsewhere),
    ]
