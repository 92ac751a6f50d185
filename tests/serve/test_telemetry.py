"""What became of requests, told as log lines, as spans and as a timeline: times and tokens by hand."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import get_current_span as span_of

import kdn
from kdn.clock import ManualClock
from kdn.config import Config, EngineConfig, ServeConfig
from kdn.core import Finish, FinishReason, Prompt, Request, Role, Sampling, Segment, Usage
from kdn.errors import MissingExtra
from kdn.serve.metrics import RecentRequests, RequestRecord
from kdn.serve.run import _teller
from kdn.serve.telemetry import RecordTeller, chrome_trace, log_lines, phases, span_sink
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

TIMES: dict[str, float] = {"queue_ms": 10, "load_ms": 4, "ttft_ms": 30, "total_ms": 70}
USAGE = Usage(100, 5, exact=60, recomputed=40, stored=60, tiers={"disk": 60}, **TIMES)  # type: ignore[arg-type]
TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def ended(usage: Usage = USAGE, failure: str = "") -> RequestRecord:
    """Began at second 0 of the clock, at 1,700,000,000 of the wall."""
    recent = RecentRequests(ManualClock())
    prompt = Prompt((Segment(Role.QUESTION, tuple(range(100))),))
    record = recent.begin(Request("r-0", prompt), "key-1", TRACEPARENT)
    recent.end(record, RuntimeError(failure) if failure else Finish(FinishReason.STOP, usage))
    return record


def test_phases_follow_one_another_and_loading_lies_in_the_prefill() -> None:
    """10 ms wait; the first token after 30; 4 ms of reading meanwhile; 70 ms in all."""
    found = {phase.name: (phase.start_s, phase.stop_s) for phase in phases(ended())}
    assert found == {
        "queue": (0, 0.01),
        "prefill": (0.01, 0.03),
        "load": (0.01, 0.014),
        "decode": (0.03, 0.07),
    }


def test_a_line_of_the_log_has_numbers_and_no_text() -> None:
    out = io.StringIO()
    log_lines(out, why=lambda _: {"why": "new_question", "place": 60})(ended())
    line = json.loads(out.getvalue())
    assert line["request"] == "r-0"
    assert line["caller"] == "key-1"
    assert (line["prompt_tokens"], line["exact"], line["tier.disk"]) == (100, 60, 60)
    assert (line["queue_ms"], line["ttft_ms"], line["total_ms"]) == (10, 30, 70)
    assert (line["why"], line["place"], line["time"]) == ("new_question", 60, 1_700_000_000)
    assert not {"prompt", "text", "messages"} & set(line)


@dataclass
class Seen:
    """A span as it was made."""

    name: str
    parent: int
    start_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    end_ns: int = 0
    status: Status | StatusCode | None = None


class OneSpan(NonRecordingSpan):
    """Notes its end; its id is its number."""

    def __init__(self, seen: Seen, number: int) -> None:
        super().__init__(SpanContext(0xAB, number, is_remote=False, trace_flags=TraceFlags(1)))
        self.seen = seen

    def end(self, end_time: int | None = None) -> None:
        self.seen.end_ns = end_time or 0

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.seen.status = status


class NotingTracer:
    """Makes spans by OpenTelemetry's interface and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: Any = None,
        attributes: Mapping[str, Any] | None = None,
        links: Any = None,
        start_time: int | None = None,
    ) -> Span:
        parent = span_of(context).get_span_context().span_id
        self.spans.append(Seen(name, parent, start_time or 0, attributes or {}))
        return OneSpan(self.spans[-1], len(self.spans))


def test_spans_lead_from_the_callers_trace_to_the_tier() -> None:
    tracer: Any = NotingTracer()
    span_sink(tracer)(ended())
    began = 1_700_000_000 * 10**9
    found = {one.name: one for one in tracer.spans}
    names = [one.name for one in tracer.spans]
    assert names[0] == "kdn.request"
    assert found["kdn.request"].parent == int("cd" * 8, 16)
    assert found["kdn.request"].attributes["exact"] == 60
    for name in ("kdn.queue", "kdn.prefill", "kdn.load", "kdn.decode"):
        assert found[name].parent == 1
    assert found["kdn.tier.disk"].parent == names.index("kdn.load") + 1
    assert found["kdn.tier.disk"].attributes == {"tokens": 60}
    assert found["kdn.decode"].start_ns == pytest.approx(began + 30_000_000, abs=1000)
    assert found["kdn.request"].end_ns == pytest.approx(began + 70_000_000, abs=1000)
    tracer = NotingTracer()
    span_sink(tracer)(ended(failure="no room"))
    assert [(one.name, one.status) for one in tracer.spans] == [("kdn.request", StatusCode.ERROR)]


def test_the_real_sdk_takes_the_spans() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    span_sink(provider.get_tracer("kdn"))(ended())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["kdn.tier.disk"].parent.span_id == spans["kdn.load"].context.span_id
    assert {span.context.trace_id for span in spans.values()} == {int("ab" * 16, 16)}


def test_a_timeline_opens_in_chrome() -> None:
    """Complete events (`X`) in microseconds, one row a request."""
    events = chrome_trace([ended(), ended()])["traceEvents"]
    decode = [one for one in events if one["name"] == "decode"]
    assert [(one["ph"], one["tid"], one["dur"]) for one in decode] == [
        ("X", 0, 40_000),
        ("X", 1, 40_000),
    ]
    assert decode[0]["ts"] == pytest.approx(1e6 * 1_700_000_000.03)
    assert events[0]["args"]["name"] == "r-0"


def test_a_sink_that_fails_is_told_no_more_and_the_others_are() -> None:
    told: list[str] = []

    def bad(_: RequestRecord) -> None:
        told.append("bad")
        raise OSError("the disk is full")

    teller = RecordTeller([bad, lambda record: told.append(record.request.id)])
    for _ in range(2):
        teller.tell(ended())
    teller.close()
    assert told == ["bad", "r-0", "r-0"]


def test_what_waits_for_a_slow_sink_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """One request is with the sink, 1,000 wait, and the other 8,999 of 10,000 are counted."""
    begun, go_on, told = threading.Event(), threading.Event(), list[RequestRecord]()

    def slow(record: RequestRecord) -> None:
        begun.set()
        go_on.wait()
        told.append(record)

    teller, record = RecordTeller([slow]), ended()
    teller.tell(record)
    begun.wait()
    assert not teller.is_behind
    for _ in range(9_999):
        teller.tell(record)
    assert (teller.dropped, teller.is_behind) == (8_999, True)
    go_on.set()
    teller.close()
    assert len(told) == 1_001
    assert [one.getMessage().split()[0] for one in caplog.records] == ["8999"]


def test_a_sink_that_stands_still_does_not_hold_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """With one request waiting, and with all the place taken."""
    for waiting in (1, 1_001):
        begun, go_on = threading.Event(), threading.Event()

        def still(_: RequestRecord, begun: Any = begun, go_on: Any = go_on) -> None:
            begun.set()
            go_on.wait()

        teller = RecordTeller([still])
        teller.tell(ended())
        begun.wait()
        for _ in range(waiting):
            teller.tell(ended())
        teller.close(timeout_s=0.01)
        go_on.set()
    told = [one.getMessage() for one in caplog.records]
    assert told.count("the last ended requests were not told: their sinks took 0.01 s") == 2


def test_settings_choose_who_is_told(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ServeConfig(log_requests="why")
    config = Config(home=tmp_path, serve=serve, engine=EngineConfig(fit_idle_s=0))
    with kdn.open(tiny_model(), config=config) as k:
        recent = RecentRequests(k.parts.clock)
        teller = _teller([k], recent)
        assert teller is not None
        request = k.prompts.request("How high?", sampling=Sampling(max_tokens=2))
        record = recent.begin(request, "local", model=k.name)
        finish = list(k.submit(request))[-1]
        assert isinstance(finish, Finish)
        recent.end(record, finish)
        teller.close()
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["request"], line["why"], line["place"]) == (request.id, "nothing_stored", 0)
    assert "How high" not in json.dumps(line)
    assert find_spec("opentelemetry.sdk") or _refuses_spans(tiny_model(), tmp_path / "other")


def _refuses_spans(model: Path, home: Path) -> bool:
    """Without the SDK, asking for spans names what is to be installed."""
    with (
        kdn.open(model, config=Config(home=home, serve=ServeConfig(otel=True))) as k,
        pytest.raises(MissingExtra, match="otel"),
    ):
        _teller([k], RecentRequests(k.parts.clock))
    return True


@pytest.fixture
def server() -> Iterator[Running]:
    service = ScriptedService()
    with running(service) as server:
        yield server
    service.close()


def test_the_timeline_of_a_servers_requests_is_served(server: Running) -> None:
    answer = server.http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 3}).json()
    for path in (f"/v1/kdn/requests/{answer['id']}", "/v1/kdn/requests"):
        events = server.http.get(f"{path}?form=chrome").json()["traceEvents"]
        assert {"queue", "prefill", "decode"} <= {one["name"] for one in events}
