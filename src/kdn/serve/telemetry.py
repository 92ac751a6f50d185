"""What became of each request, told to others after its end: log lines, spans, a timeline.

    engine's thread ─> put on a queue ─> one thread ─> a JSON line, OpenTelemetry spans

No prompt, no answer and no key is in any of it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import msgspec

from kdn.errors import MissingExtra
from kdn.model.adapters import adapter_name
from kdn.serve.metrics import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["RecordTeller", "chrome_trace", "log_lines", "otlp_tracer", "phases", "span_sink"]

Sink = Callable[[RequestRecord], None]
_log = logging.getLogger(__name__)


class RequestPhase(NamedTuple):
    """A part of a request's time, in seconds from its arrival."""

    name: str
    start_s: float
    stop_s: float


def phases(record: RequestRecord) -> list[RequestPhase]:
    """Waiting, prefill and decoding, end to end; and loading, most of which passes during prefill."""
    if record.finish is None:
        return []
    usage = record.finish.usage
    queue_s, first_s = usage.queue_ms / 1e3, max(usage.ttft_ms, usage.queue_ms) / 1e3
    end_s = max(usage.total_ms / 1e3, first_s)
    found = [RequestPhase("queue", 0.0, queue_s), RequestPhase("prefill", queue_s, first_s)]
    if usage.load_ms:
        found.append(RequestPhase("load", queue_s, min(queue_s + usage.load_ms / 1e3, first_s)))
    if usage.completion_tokens:
        found.append(RequestPhase("decode", first_s, end_s))
    return found


def facts(record: RequestRecord) -> dict[str, Any]:
    """The numbers of a request that has ended, by the names that logs and spans give them."""
    request = record.request
    found: dict[str, Any] = {
        "request": request.id,
        "caller": record.caller,
        "model": adapter_name(request.adapter or "") or record.model,
        "prompt_tokens": request.prompt.num_tokens,
    }
    if record.finish is None:
        return found | {"failure": record.failure}
    usage: Any = record.finish.usage
    names = ("completion_tokens", "exact", "blended", "shared", "lossy", "recomputed", "stored")
    found |= {name: getattr(usage, name) for name in names}
    times = ("queue_ms", "load_ms", "ttft_ms", "total_ms")
    found |= {name: round(getattr(usage, name), 3) for name in times}
    found |= {f"tier.{tier}": tokens for tier, tokens in usage.tiers.items()}
    return found | {"finish_reason": str(record.finish.reason)}


CLOSE_S = 5.0
"""How long the end of the server waits for the sinks."""
_MOST_WAITING = 1000
"""Ended requests that wait for the sinks: each holds its prompt."""


class RecordTeller:
    """Hands each ended request to the sinks, on a thread of its own, so that no answer waits.

    A sink that fails is reported once and told no more.  Where 1,000 requests wait for slow sinks, what
    ends then is counted in `dropped` and not told; the log has the count each time it has doubled.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = list(sinks)
        self._ended: Queue[RequestRecord | None] = Queue(_MOST_WAITING)
        self.dropped = 0
        self._dropping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="kdn-telemetry", daemon=True)
        self._thread.start()

    def tell(self, record: RequestRecord) -> None:
        """The request has ended. Returns at once."""
        try:
            self._ended.put_nowait(record)
        except Full:
            with self._dropping:  # of several engines
                self.dropped += 1

    @property
    def is_behind(self) -> bool:
        """Is more than half of the place for waiting requests taken?"""
        return 2 * self._ended.qsize() > _MOST_WAITING

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Tell what waits, and end. What slow sinks are not told by then is given up, and the log says so."""
        until_s = time.monotonic() + timeout_s
        with suppress(Full):
            self._ended.put(None, timeout=timeout_s)
        self._thread.join(max(until_s - time.monotonic(), 0.0))
        if self._thread.is_alive():
            _log.warning("the last ended requests were not told: their sinks took %g s", timeout_s)

    def _run(self) -> None:
        reported = 0
        while (record := self._ended.get()) is not None:
            if self.dropped > 2 * reported:  # told here: a log that nobody reads stops no engine
                reported = self.dropped
                _log.warning("%d ended requests were not told: their sinks are too slow", reported)
            for sink in list(self._sinks):
                try:
                    sink(record)
                except Exception:  # noqa: BLE001  whatever it is, answers go on
                    _log.exception("a sink of request records failed and is told no more")
                    self._sinks.remove(sink)


def log_lines(
    out: TextIO | None = None, why: Callable[[RequestRecord], Mapping[str, Any]] | None = None
) -> Sink:
    """A sink that writes one JSON object a line; with `why` also the reason of the miss."""
    stream = out or sys.stderr

    def write(record: RequestRecord) -> None:
        line = {"event": "request", "time": round(record.began_wall_s, 3)} | facts(record)
        if why is not None and record.finish is not None:
            line |= why(record)
        stream.write(msgspec.json.encode(line).decode() + "\n")
        stream.flush()

    return write


def span_sink(tracer: Tracer) -> Sink:
    """A sink that makes a span of each request, with one inside for each phase and each tier.

    The parent is the caller's `traceparent`, where one was sent.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def make(record: RequestRecord) -> None:
        parent = propagator.extract({"traceparent": record.traceparent})
        began_s = record.began_wall_s
        whole = tracer.start_span(
            "kdn.request", parent, trace.SpanKind.SERVER, facts(record), start_time=_ns(began_s)
        )
        inside = trace.set_span_in_context(whole, parent)
        for phase in phases(record):
            child = tracer.start_span(
                f"kdn.{phase.name}", inside, start_time=_ns(began_s + phase.start_s)
            )
            if phase.name == "load" and record.finish is not None:
                within = trace.set_span_in_context(child, inside)
                for tier, tokens in record.finish.usage.tiers.items():
                    of_tier = tracer.start_span(
                        f"kdn.tier.{tier}",
                        within,
                        attributes={"tokens": tokens},
                        start_time=_ns(began_s + phase.start_s),
                    )
                    of_tier.end(_ns(began_s + phase.stop_s))
            child.end(_ns(began_s + phase.stop_s))
        if record.failure:
            whole.set_status(trace.StatusCode.ERROR, record.failure)
        took_s = 0.0 if record.ended_s is None else record.ended_s - record.began_s
        last_s = max((phase.stop_s for phase in phases(record)), default=took_s)
        whole.end(_ns(began_s + last_s))

    return make


def otlp_tracer(version: str) -> Tracer:
    """A tracer that sends spans where the `OTEL_EXPORTER_OTLP_*` variables say. Raises MissingExtra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("spans need OpenTelemetry: pip install 'kdn[otel]'") from error
    resource = Resource.create({"service.name": "kdn", "service.version": version})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer: Tracer = provider.get_tracer("kdn", version)
    return tracer


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def chrome_trace(records: Iterable[RequestRecord]) -> dict[str, Any]:
    """Requests as a timeline that Chrome's tracing page and Perfetto open: one row a request."""
    events: list[dict[str, Any]] = []
    for row, record in enumerate(records):
        events += _events(row, record)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(row: int, record: RequestRecord) -> Iterator[dict[str, Any]]:
    place = {"pid": 1, "tid": row}
    yield {"name": "thread_name", "ph": "M", "args": {"name": record.request.id}, **place}
    for phase in phases(record):
        yield {
            "name": phase.name,
            "cat": "kdn",
            "ph": "X",
            "ts": round(1e6 * (record.began_wall_s + phase.start_s), 1),
            "dur": round(1e6 * (phase.stop_s - phase.start_s), 1),
            "args": facts(record) if phase.name == "prefill" else {},
            **place,
        }
