"""What every route has at hand, and the only place where an HTTP request becomes a `Request`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request as HttpRequest

from kdn.clock import Clock
from kdn.core import Prompt, Request, Sampling
from kdn.serve.auth import Caller, caller_of
from kdn.serve.errors import Refused
from kdn.serve.inflight import Backpressure, Held, Shutdown
from kdn.serve.metrics import Metrics
from kdn.serve.openai.requests import JobBody
from kdn.serve.openai.streams import (
    GatheredAnswer,
    ResponseStreams,
    gather,
    submit_all,
    until_disconnect,
)
from kdn.serve.service import ServedModel
from kdn.serve.settings import ServeSettings

__all__ = ["HttpJob", "RequestContext"]

T = TypeVar("T")


@dataclass(frozen=True)
class HttpJob:
    """What all requests of one HTTP request share."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    """The name that the answer gives: the base model or the adapter."""
    adapter: str | None
    caller: Caller
    salt: str
    priority: int

    def request(self, number: int, prompt: Prompt, sampling: Sampling, **more: Any) -> Request:
        """The request of this job with that number; `more` are fields of `Request`."""
        return Request(
            id=f"{self.id}-{number}",
            prompt=prompt,
            sampling=sampling,
            salt=self.salt,
            adapter=self.adapter,
            priority=self.priority,
            **more,
        )


@dataclass(frozen=True)
class RequestContext:
    """The parts of one server, joined once in `create_app`."""

    model: ServedModel
    settings: ServeSettings
    metrics: Metrics
    backpressure: Backpressure
    shutdown: Shutdown
    threads: CapacityLimiter
    """For prompts: routes that wait for the store have others."""
    clock: Clock
    new_id: Callable[[], str]

    def created(self) -> int:
        """Now, in whole seconds since 1970."""
        return int(self.clock.wall())

    def job(self, kind: str, body: JobBody, http: HttpRequest) -> HttpJob:
        """A new job; `kind` begins its id.

        Raises Refused for a model that is not served, and for a salt that the caller may not name.
        """
        adapter, caller = self.adapter(body.model), caller_of(http.scope)
        return HttpJob(
            id=f"{kind}-{self.new_id()}",
            created=self.created(),
            model=adapter or self.model.name,
            adapter=adapter,
            caller=caller,
            salt=caller.salt(body.cache_salt),
            priority=body.priority or 0,
        )

    def adapter(self, model: str | None) -> str | None:
        """The adapter that `model` names, None for the base. Raises Refused (404) for other names."""
        served = self.model
        if model is None or model == served.name:
            return None
        if model in served.adapters:
            return model
        names = ", ".join([served.name, *served.adapters])
        raise Refused(
            f"the model {model!r} is not served here; this server has {names}",
            param="model",
            code="model_not_found",
            status=404,
        )

    async def in_thread(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `work` returns, worked out beside the event loop."""
        return await run_sync(partial(work, *arguments, **named), limiter=self.threads)

    @contextmanager
    def hold(self, job: HttpJob, requests: int, tokens: int) -> Iterator[None]:
        """So much is in work for the job's caller inside. Raises Refused beyond the limits."""
        with self.backpressure.hold(job.caller.name, Held(requests, tokens)):
            yield

    def submit_all(
        self, job: HttpJob, requests: Sequence[Request], *, held: bool = False
    ) -> ResponseStreams:
        """All of them running, or none. Raises what the engine refuses with, and Refused beyond
        the limits, unless the caller has `held` what they need."""
        ended = ExitStack()
        if not held:
            tokens = sum(request.prompt.num_tokens for request in requests)
            ended.enter_context(self.hold(job, len(requests), tokens))
        max_events = self.settings.limits.stream_events
        streams = submit_all(self.model, self.metrics, requests, max_events, ended)
        self.shutdown.follow(streams)
        ended.callback(self.shutdown.forget, streams)
        return streams

    async def answers(
        self, job: HttpJob, requests: Sequence[Request], http: HttpRequest, *, held: bool = False
    ) -> list[GatheredAnswer]:
        """Every answer in order. Raises Disconnected when the client leaves first."""
        streams = self.submit_all(job, requests, held=held)
        return await until_disconnect(http, streams, gather(streams, len(requests)))
