"""From the bodies of HTTP requests to a `Request`: the parts that every route has at hand."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request as HttpRequest
from msgspec import UNSET, UnsetType

from kdn.clock import Clock
from kdn.core import Constraint, Finish, Prompt, Request, Sampling
from kdn.errors import BadInput
from kdn.machine.text import counted
from kdn.model import ChatOptions, Document, Message
from kdn.serve.auth import Caller, caller_of, is_background
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_COUNTED_TOKENS, Backpressure, Held, Shutdown, check_length
from kdn.serve.metrics import Metrics, RecentRequests, RequestRecord
from kdn.serve.openai.requests import ContentPart, DocumentBody, JobBody, MessageBody
from kdn.serve.openai.responses import WhyReport, why_report
from kdn.serve.openai.steering import SteeringReport, steering_of
from kdn.serve.openai.streams import (
    GatheredAnswer,
    ResponseStreams,
    gather,
    submit_all,
    until_disconnect,
)
from kdn.serve.openai.tools import called_turn
from kdn.serve.openai.unsupported import HARMLESS, NEUTRAL
from kdn.serve.service import PromptMaker, ServedModel, ServedModels
from kdn.serve.settings import ServeSettings

__all__ = [
    "HttpJob",
    "RequestContext",
    "answer_room",
    "biases_of",
    "chat_prompt",
    "check_ids",
    "conversation",
    "document_of",
    "refuse_unsupported",
    "truncated",
]


_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def answer_room(model: ServedModel, num_prompt: int, asked: int | None, default: int) -> int:
    """How many tokens the answer may have.

    An explicit wish that does not fit is refused; the default shrinks to the room that is left.
    """
    left = model.max_context - num_prompt
    if left >= (asked or 1):
        return min(default, left) if asked is None else max(asked, 1)
    raise Refused(
        f"the context holds {counted(model.max_context, 'token')}; the prompt has {num_prompt} and "
        f"{asked or 1} were asked for the answer: shorten one of them",
        param="messages",
        code="context_length_exceeded",
    )


def biases_of(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    """By token id. Raises Refused for what is no token here, or beyond what OpenAI allows."""
    found: dict[int, float] = {}
    for name, bias in biases.items():
        if not _TOKEN_ID.fullmatch(name) or int(name) >= vocab_size:
            raise Refused(
                f"logit_bias names token {name[:20]!r}; token ids here are 0..{vocab_size - 1}",
                param="logit_bias",
            )
        if not -100 <= bias <= 100:
            raise Refused(f"logit_bias {bias} is not in -100..100", param="logit_bias")
        found[int(name)] = bias
    return found


def truncated(prompt: Prompt, asked: int | None, room: int) -> Prompt:
    """The last `asked` tokens of a prompt; -1 means as many as there is room for."""
    left = prompt.num_tokens - (
        room if asked == -1 else prompt.num_tokens if asked is None else asked
    )
    segments = []
    for segment in prompt.segments:
        gone = min(max(left, 0), segment.num_tokens)
        left -= gone
        if gone < segment.num_tokens:
            segments.append(replace(segment, token_ids=segment.token_ids[gone:]))
    return replace(prompt, segments=tuple(segments)) if asked is not None else prompt


def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    documents: Sequence[Document],
    salt: str,
    options: ChatOptions | None = None,
    *,
    is_cut: bool = False,
) -> Prompt:
    """The prompt of a conversation. Raises Refused for one that is far too long.

    One that `is_cut` afterwards may be far longer than the context.
    """
    texts = [*(message.content for message in messages), *(one.text for one in documents)]
    most = max(4 * model.max_context, MAX_COUNTED_TOKENS) if is_cut else model.max_context
    check_length(texts, model.vocabulary, most, "messages")
    return model.prompts.segments(messages, documents, salt, options)


def check_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raise Refused for a token id that the vocabulary does not have."""
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise Refused(f"token id {token_id}: ids here are 0..{vocab_size - 1}", param=param)


def conversation(
    bodies: Sequence[MessageBody],
    documents: Sequence[DocumentBody | str] | None,
    prompts: PromptMaker,
) -> tuple[list[Message], list[Document]]:
    """Turns and documents. A part marked as a document or an instruction leaves its message."""
    found = [document_of(one, index) for index, one in enumerate(documents or ())]
    instructions: list[Message] = []
    turns: list[tuple[str, list[str]]] = []
    for index, body in enumerate(bodies):
        role = _role(body, index)
        own: list[str] = []
        for part in _parts(body, index):
            text, use = part.text or "", part.kdn.role if part.kdn else None
            if use == "document":
                found.append(Document(part.kdn.id if part.kdn else None, text))
            elif use == "instruction":
                instructions.append(Message("system", text))
            else:
                own.append(text)
        if role == "tool" or body.tool_calls:
            text, where = "\n".join(own), f"messages[{index}]"
            turn = called_turn(role, text, body.tool_calls or (), prompts, where)
            if turn.role == "user" and index and bodies[index - 1].role == "tool":
                # Results for a template that knows no tools, which may want an answer to each user's turn.
                turns[-1][1].append(turn.content)
            else:
                turns.append((turn.role, [turn.content]))
        elif own or not _parts(body, index):
            turns.append((role, own))
    if not turns:
        raise Refused("there is no message left beside the documents", param="messages")
    return instructions + [Message(role, "\n".join(own)) for role, own in turns], found


def document_of(given: DocumentBody | str, index: int) -> Document:
    """A document in whichever way it came. Raises Refused for one without a text."""
    if isinstance(given, str):
        return Document(None, given)
    text = given.page_content if given.text is None else given.text
    if text is None:
        raise Refused(
            f"documents[{index}] has no text; send a string, or text with a title or an id",
            param=f"documents[{index}].text",
        )
    source = (given.metadata or {}).get("source")
    name = given.id or given.title or (source if isinstance(source, str) else None)
    return Document(name, f"{given.title}\n\n{text}" if given.title else text)


def _role(body: MessageBody, index: int) -> str:
    where = f"messages[{index}]"
    if body.role not in _ROLES:
        raise Refused(
            f"{where}.role is {body.role!r}; kdn knows system, developer, user, assistant and tool",
            param=f"{where}.role",
        )
    for name, value in (body.model_extra or {}).items():
        if value:
            raise Refused(f"{where}.{name} is not supported", param=f"{where}.{name}")
    return _ROLES[body.role]


def _parts(body: MessageBody, index: int) -> list[ContentPart]:
    if body.content is None and body.role not in ("assistant", "tool"):
        where = f"messages[{index}].content"
        raise Refused(f"{where} is missing; give a text, or a list of parts", param=where)
    if body.content is None or isinstance(body.content, str):
        return [ContentPart(type="text", text=body.content or "")]
    for number, part in enumerate(body.content):
        if part.type != "text" or part.text is None:
            raise Refused(
                f"content of type {part.type!r} cannot be read; kdn takes text",
                param=f"messages[{index}].content[{number}]",
            )
    return body.content


def refuse_unsupported(extra: Mapping[str, object] | None) -> None:
    """Raise Refused for the first parameter that kdn cannot honour."""
    for name, value in (extra or {}).items():
        if name in HARMLESS or (name in NEUTRAL and (value is None or value in NEUTRAL[name])):
            continue
        known = (
            f"{name} is not supported by kdn" if name in NEUTRAL else f"unknown parameter {name}"
        )
        raise Refused(f"{known}; leave it out", param=name, code="unsupported_parameter")


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
    served: ServedModel
    """Who answers."""
    caller: Caller
    salt: str
    priority: int
    explain: Callable[[str], Awaitable[WhyReport | UnsetType]]
    """Why the job's request of that id was not reused further."""
    steering: Callable[[HttpJob, Sequence[int]], Awaitable[SteeringReport | UnsetType]]
    """What steering did to the first answer, whose tokens are given."""
    tell: Callable[..., Awaitable[Any]]
    """What a function returns that tells prompts' tokens, worked out in the one thread for that."""
    traceparent: str = ""
    """The caller's trace."""
    background: bool = False
    """Runs after what somebody waits for."""
    bound: dict[str, tuple[str, object]] = field(default_factory=dict)

    def request(self, number: int, prompt: Prompt, sampling: Sampling, **more: Any) -> Request:
        """The request of this job with that number; `more` are fields of `Request`."""
        return Request(
            id=f"{self.id}-{number}",
            prompt=prompt,
            sampling=sampling,
            salt=self.salt,
            adapter=self.bound_adapter(),
            priority=self.priority,
            background=self.background,
            **more,
        )

    def bound_adapter(self) -> str | None:
        """What the adapter's name meant when it was first needed: all requests of a job get the same."""
        if self.adapter is None:
            return None
        if self.adapter not in self.bound:
            self.bound[self.adapter] = self.served.bind(self.adapter)
        return self.bound[self.adapter][0]


@dataclass(frozen=True)
class RequestContext:
    """The parts of one server, joined once in `create_app`."""

    models: ServedModels
    settings: ServeSettings
    metrics: Metrics
    backpressure: Backpressure
    shutdown: Shutdown
    threads: CapacityLimiter
    """For prompts: routes that wait for the store have others."""
    compiling: CapacityLimiter
    """For constraints: what takes long there delays nothing else."""
    telling: CapacityLimiter
    """For answers that tell prompts' tokens, which take seconds: prompts do not wait for them."""
    comparing: CapacityLimiter
    """For answers with and without steering, which take whole requests: nothing else waits for them."""
    clock: Clock
    new_id: Callable[[], str]
    recent: RecentRequests

    async def compiled(self, model: ServedModel, constraint: Constraint, param: str) -> None:
        """Have a constraint ready. Raises Refused, which names `param`, for one that cannot be honoured."""
        try:
            await run_sync(model.compile, constraint, limiter=self.compiling)
        except BadInput as error:
            raise Refused(str(error), param=param, code="invalid_constraint") from error

    def created(self) -> int:
        """Now, in whole seconds since 1970."""
        return int(self.clock.wall())

    def job(self, kind: str, body: JobBody, http: HttpRequest) -> HttpJob:
        """A new job; `kind` begins its id.

        Raises Refused for a model that is not served, and for a salt that the caller may not name.
        """
        (served, adapter), caller = self.find(body.model), caller_of(http.scope)
        return HttpJob(
            id=f"{kind}-{self.new_id()}",
            created=self.created(),
            model=adapter or served.name,
            adapter=adapter,
            served=served,
            caller=caller,
            salt=caller.salt(body.cache_salt),
            priority=body.priority or 0,
            explain=self.explain,
            steering=partial(steering_of, self),
            tell=partial(run_sync, limiter=self.telling),
            traceparent=http.headers.get("traceparent", ""),
            background=is_background(http.scope),
        )

    async def explain(self, request_id: str) -> WhyReport | UnsetType:
        """Why the request was not reused further, for its own caller; UNSET where nobody can say."""
        record = self.recent.get(request_id)
        why = None if record is None else self.model_of(record).why
        if record is None or record.finish is None or why is None:
            return UNSET
        told = await self.in_thread(
            why.explain, record.request, record.finish.usage, ended_s=record.ended_s
        )
        return why_report(told)

    def find(self, model: str | None) -> tuple[ServedModel, str | None]:
        """The model that answers by that name, and its adapter. Raises Refused (404) for other names."""
        if model is None:
            return self.models.first, None
        if model in self.models.by_name:
            return self.models.by_name[model], None
        if adapted := self.models.adapted(model):
            return adapted, model
        names = ", ".join(self.models.names())
        raise Refused(
            f"the model {model!r} is not served here; this server has {names}",
            param="model",
            code="model_not_found",
            status=404,
        )

    def model_of(self, record: RequestRecord) -> ServedModel:
        """The model that answered a request."""
        return self.models.by_name.get(record.model, self.models.first)

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
        streams = submit_all(
            job.served, self.metrics, requests, max_events, ended, partial(self._begin, job)
        )
        self.shutdown.follow(streams)
        ended.callback(self.shutdown.forget, streams)
        return streams

    def _begin(self, job: HttpJob, request: Request) -> Callable[[Finish | Exception], None]:
        """Keeps a record of the request; the result is told of its end."""
        record = self.recent.begin(request, job.caller.name, job.traceparent, model=job.served.name)
        return partial(self.recent.end, record)

    async def answers(
        self, job: HttpJob, requests: Sequence[Request], http: HttpRequest, *, held: bool = False
    ) -> list[GatheredAnswer]:
        """Every answer in order. Raises Disconnected when the client leaves first."""
        streams = self.submit_all(job, requests, held=held)
        return await until_disconnect(http, streams, gather(streams, len(requests)))
