"""What steering did to an answer, told with it where `kdn.steer_report` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from msgspec import UNSET, Struct, UnsetType

from kdn.api.steering import steer_report

if TYPE_CHECKING:
    from kdn.serve.openai.context import HttpJob, RequestContext

__all__ = ["SteeringReport", "steering_of"]


class SteeringReport(Struct):
    """The first choice beside the answer that would have been given without steering (docs/steer.md)."""

    kl: float
    nll: float | None
    plain_nll: float | None
    tokens: int
    plain_text: str


async def steering_of(
    context: RequestContext, job: HttpJob, token_ids: Sequence[int]
) -> SteeringReport | UnsetType:
    """Compares the answer of the job's first request; UNSET for one that is not remembered any more.

    Requests run for it one after another, which count as the caller's.  Raises Refused beyond the limits.
    """
    record = context.recent.get(f"{job.id}-0")
    if record is None:
        return UNSET
    request = record.request
    work = partial(steer_report, job.served.engine.submit, request, tuple(token_ids))
    with context.hold(job, 1, request.prompt.num_tokens):
        found = await run_sync(work, limiter=context.comparing)
    return SteeringReport(
        round(found.kl, 6), found.nll, found.plain_nll, found.num_compared, found.plain_text
    )
