"""/metrics: the names users of vLLM expect, for what is truly measured here, and kdn's own.

Counted from each stream's own Finish, so that the counters equal the sum of all `usage` objects.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kdn.clock import Clock
from kdn.core import Finish, FinishReason, Request, StreamEvent, Usage
from kdn.errors import KdnError
from kdn.machine.threads import thread_seconds
from kdn.serve.service import ServedModels, StoreNumbers

__all__ = ["Metrics", "RecentRequests", "RequestRecord"]

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_LONG_SECONDS = (0.1, 0.3, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 240, 480)
_STORE_WAIT_S = 0.5
_REASONS = {FinishReason.CANCELLED: "abort"}


class Metrics:
    """Counts what passes. Owns its registry, so two servers in one process do not mix."""

    def __init__(self, models: ServedModels, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = 0
        self._ended = 0
        self.registry = CollectorRegistry()
        self._make_counters()
        self._make_histograms()
        first = models.first
        for model in models.all:
            self._show_zeros(model.name, first.no_numbers.blocks)
        self._numbers = _Snapshot(first.store_numbers, first.no_numbers, clock)
        self.registry.register(_Now(models, self._numbers))

    def _make_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("model_name", *labels), registry=self.registry)

        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens of ended requests.")
        self._generated = counter("vllm:generation_tokens", "Tokens generated.")
        self._queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up.")
        self._hits = counter("vllm:prefix_cache_hits", "Prompt tokens found, exactly.")
        self._cached = counter("vllm:prompt_tokens_cached", "Prompt tokens reused in any way.")
        self._success = counter(
            "vllm:request_success", "Requests ended without error.", "finished_reason"
        )
        self._failed = counter("kdn_requests_failed", "Requests ended by an error.")
        self._reused = counter("kdn_reused_tokens", "Prompt tokens by kind of reuse.", "kind")
        self._computed = counter("kdn_recomputed_tokens", "Prompt tokens computed.")
        self._tiers = counter("kdn_tier_tokens", "Reused tokens by supplying tier.", "tier")

    def _make_histograms(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ("model_name",), registry=self.registry, buckets=buckets)

        self._ttft = histogram("vllm:time_to_first_token_seconds", "From arrival.", _SECONDS)
        self._gap = histogram("vllm:inter_token_latency_seconds", "Between tokens.", _SECONDS)
        self._queue = histogram("vllm:request_queue_time_seconds", "Before work.", _LONG_SECONDS)
        self._whole = histogram("vllm:e2e_request_latency_seconds", "To the end.", _LONG_SECONDS)

    def _show_zeros(self, model: str, tiers: Iterable[str]) -> None:
        """A series that is missing until it first counts would read as a fault of the server."""
        plain = (
            self._prompt, self._generated, self._queries, self._hits, self._cached, self._failed,
            self._computed, self._ttft, self._gap, self._queue, self._whole,
        )  # fmt: skip
        for metric in plain:
            metric.labels(model)
        for reason in ("stop", "length", "abort"):
            self._success.labels(model, reason)
        for kind in ("exact", "blended", "shared", "lossy"):
            self._reused.labels(model, kind)
        for tier in tiers:
            self._tiers.labels(model, tier)

    def listener(
        self,
        note: Callable[[StreamEvent], None],
        note_end: Callable[[Finish | Exception], None],
        model: str,
    ) -> Callable[[StreamEvent | Exception | None], None]:
        """A listener that counts one stream of `model`, and passes its events on to `note` and its end
        to `note_end`."""
        last_s: float | None = None
        gap = self._gap.labels(model)
        with self._lock:
            self._started += 1

        def hear(event: StreamEvent | Exception | None) -> None:
            nonlocal last_s
            if event is None:
                self._end()
            elif isinstance(event, Exception):
                self._failed.labels(model).inc()
                note_end(event)
            else:
                if isinstance(event, Finish):
                    self._finish(event, model)
                    note_end(event)
                else:
                    now_s = self._clock.now()
                    if last_s is not None:
                        gap.observe(now_s - last_s)
                    last_s = now_s
                note(event)

        return hear

    def _finish(self, finish: Finish, model: str) -> None:
        usage = finish.usage
        self._success.labels(model, _REASONS.get(finish.reason, str(finish.reason))).inc()
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._generated.labels(model).inc(usage.completion_tokens)
        self._queries.labels(model).inc(usage.prompt_tokens)
        self._hits.labels(model).inc(usage.exact)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._computed.labels(model).inc(usage.recomputed)
        kinds = {
            "exact": usage.exact,
            "blended": usage.blended,
            "shared": usage.shared,
            "lossy": usage.lossy,
        }
        for kind, tokens in kinds.items():
            self._reused.labels(model, kind).inc(tokens)
        for tier, tokens in usage.tiers.items():
            self._tiers.labels(model, tier).inc(tokens)
        self._times(usage, model)

    def _times(self, usage: Usage, model: str) -> None:
        self._queue.labels(model).observe(usage.queue_ms / 1000)
        self._whole.labels(model).observe(usage.total_ms / 1000)
        if usage.completion_tokens:
            self._ttft.labels(model).observe(usage.ttft_ms / 1000)

    def _end(self) -> None:
        with self._lock:
            self._ended += 1

    def check(self) -> None:
        """Raise AssertionError if more streams have ended than were started."""
        with self._lock:
            assert 0 <= self._ended <= self._started, f"{self._ended} of {self._started} ended"

    async def text(self) -> bytes:
        """Everything in Prometheus' text format, from memory: a store that does not answer within
        half a second is told of by its last numbers, and their age."""
        await self._numbers.refresh(_STORE_WAIT_S)
        return generate_latest(self.registry)


@dataclass
class RequestRecord:
    """One request of a caller, while it runs and for a while after."""

    request: Request
    caller: str
    began_s: float
    """The clock's seconds."""
    began_wall_s: float
    """Seconds since 1970."""
    finish: Finish | None = None
    failure: str = ""
    """What it ended with in place of a Finish."""
    ended_s: float | None = None
    traceparent: str = ""
    """The caller's trace, by the W3C's header of that name."""
    model: str = "base"
    """The served model; `request.adapter` says which of its adapters was used."""


class RecentRequests:
    """The last requests, for callers that ask what became of theirs. Safe from several threads.

    Holds at most `most` requests of `most_tokens` prompt tokens together, but always the last one.
    """

    def __init__(self, clock: Clock, most: int = 1000, most_tokens: int = 500_000) -> None:
        self._clock = clock
        self._most = most
        self._most_tokens = most_tokens
        self._num_tokens = 0
        self._lock = threading.Lock()
        self.on_end: Callable[[RequestRecord], None] | None = None
        """Told of each request that has ended, on the engine's thread: must return at once."""
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def begin(
        self, request: Request, caller: str, traceparent: str = "", *, model: str = "base"
    ) -> RequestRecord:
        """The request has been submitted."""
        now_s, wall_s = self._clock.now(), self._clock.wall()
        record = RequestRecord(request, caller, now_s, wall_s, traceparent=traceparent, model=model)
        with self._lock:
            self._records[request.id] = record
            self._num_tokens += request.prompt.num_tokens
            while len(self._records) > 1 and (
                len(self._records) > self._most or self._num_tokens > self._most_tokens
            ):
                _, oldest = self._records.popitem(last=False)
                self._num_tokens -= oldest.request.prompt.num_tokens
        return record

    def end(self, record: RequestRecord, finish: Finish | Exception) -> None:
        """It has ended, one way or the other."""
        record.ended_s = self._clock.now()
        if isinstance(finish, Finish):
            record.finish = replace(finish, spell_prompt=tuple)  # they take kilobytes a token
        else:
            record.failure = str(finish)
        if self.on_end is not None:
            self.on_end(record)

    def get(self, request_id: str) -> RequestRecord | None:
        """By its own id, or by that of the HTTP request whose first answer it is."""
        with self._lock:
            return self._records.get(request_id) or self._records.get(f"{request_id}-0")

    def all(self) -> list[RequestRecord]:
        """Every record, oldest first."""
        with self._lock:
            return list(self._records.values())


class _Snapshot:
    """The store's last numbers, read on a thread of its own, one reading at a time."""

    def __init__(
        self, read: Callable[[], StoreNumbers], before: StoreNumbers, clock: Clock
    ) -> None:
        """`before` stands until the first reading has ended."""
        self._read = read
        self._clock = clock
        self._reading: Future[None] | None = None
        self.last = before
        self._read_s = clock.now()

    @property
    def age_s(self) -> float:
        """Since the numbers were read, or since the start."""
        return self._clock.now() - self._read_s

    async def refresh(self, within_s: float) -> None:
        """Read again, or go on waiting for the reading under way; return after `within_s` anyway."""
        if self._reading is None or self._reading.done():
            self._reading = Future()
            threading.Thread(
                target=self._renew, args=(self._reading,), name="kdn-numbers", daemon=True
            ).start()
        await asyncio.wait([asyncio.wrap_future(self._reading)], timeout=within_s)

    def _renew(self, reading: Future[None]) -> None:
        try:
            self.last = self._read()
            self._read_s = self._clock.now()
        except KdnError:
            pass  # as with a store that does not answer: the age tells
        finally:
            reading.set_result(None)


class _Now(Collector):
    """What is so at each scrape: load of the engine, numbers of the store."""

    def __init__(self, models: ServedModels, numbers: _Snapshot) -> None:
        self._models = models
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        yield from self._load()
        spent = thread_seconds()
        yield _by(CounterMetricFamily, "kdn_cpu_seconds", "Of processors.", "thread", spent)
        age = GaugeMetricFamily(
            "kdn_store_numbers_age_seconds", "Since the store's numbers were read."
        )
        age.add_metric([], self._numbers.age_s)
        yield age
        yield from _store(self._numbers.last)

    def _load(self) -> Iterator[Metric]:
        """A stopped engine has none; /health says that it stopped."""
        running = _gauge("vllm:num_requests_running", "Being computed.")
        waiting = _gauge("vllm:num_requests_waiting", "In the queue.")
        usage = _gauge("vllm:kv_cache_usage_perc", "0 to 1, of what all models share.")
        seconds = CounterMetricFamily(
            "kdn_engine_seconds", "Of the engine's thread.", labels=["model_name", "part"]
        )
        prefixes = _gauge("kdn_resident_prefixes", "Where the engine reads them.")
        size = _gauge("kdn_resident_bytes", "Of those prefixes.")
        hits = CounterMetricFamily(
            "kdn_resident_hits", "Requests that found theirs there.", labels=["model_name"]
        )
        for one in self._models.all:
            if not one.engine.is_running:
                continue
            stat, name = one.engine.stat(), [one.name]
            used = stat.kv_total_bytes - stat.kv_free_bytes
            running.add_metric(name, stat.num_prefilling + stat.num_decoding)
            waiting.add_metric(name, stat.num_waiting)
            usage.add_metric(name, used / max(stat.kv_total_bytes, 1))
            for part, spent_s in stat.seconds.items():
                seconds.add_metric([one.name, part], spent_s)
            if stat.resident is not None:
                prefixes.add_metric(name, stat.resident.num_prefixes)
                size.add_metric(name, stat.resident.size_bytes)
                hits.add_metric(name, stat.resident.num_hits)
        found = (running, waiting, usage, seconds, prefixes, size, hits)
        yield from (one for one in found if one.samples)

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: names are known only when the store has been asked."""
        return iter(())


def _store(numbers: StoreNumbers) -> Iterator[Metric]:
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    errors = {tier: numbers.errors.get(tier, 0) for tier in numbers.size_bytes}
    yield _by(gauge, "kdn_store_blocks", "Blocks held.", "tier", numbers.blocks)
    yield _by(gauge, "kdn_store_bytes", "Bytes held.", "tier", numbers.size_bytes)
    yield _by(counter, "kdn_tier_errors", "Failures, damaged and lost blocks.", "tier", errors)
    said = "Faults of reuse, which answers went without."
    yield _by(counter, "kdn_reuse_failed", said, "step", numbers.reuse_failures)
    yield _by(counter, "kdn_store_events", "Since opening.", "event", numbers.counts)
    blend = gauge("kdn_blend", "Blended against full prefills.", labels=["what", "collection"])
    for collection, seen in numbers.blend.items():
        for what, value in seen.items():
            blend.add_metric([what, collection], value)
    yield blend
    said = "Collections judged, of all tenants."
    yield gauge("kdn_blend_collections", said, value=numbers.blend_collections)
    said = "Of the blocks held, by the price sheet."
    yield _by(gauge, "kdn_store_money_usd", said, "way", numbers.money_usd)


def _by(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    """A metric with one label, and a sample for each of its values."""
    family = kind(name, text, labels=[label])
    for given, value in values.items():
        family.add_metric([given], value)
    return family


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model_name"])
