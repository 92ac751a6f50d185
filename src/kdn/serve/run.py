"""Opens the port, joins an open Kdn with the server, and serves until a stop is asked for."""

from __future__ import annotations

import copy
import errno
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import uvicorn
import uvicorn.config
from fastapi import FastAPI

import kdn as package
from kdn.api import Kdn
from kdn.api.embedders import EMBEDDER
from kdn.errors import BadConfig, PortInUse, UnknownModel
from kdn.model import resolve
from kdn.reuse.steer import RecipeFolder, SteerRecipe
from kdn.serve.app import create_app
from kdn.serve.auth import read_keys
from kdn.serve.connections import BoundedProtocol, Server, fitting_connections
from kdn.serve.console.data import ConsoleData
from kdn.serve.console.routes import mount_console
from kdn.serve.limits import KEEP_ALIVE_S, MAX_HEADER_BYTES
from kdn.serve.metrics import RecentRequests, RequestRecord
from kdn.serve.service import ServedEmbedder, ServedModel, StoreNumbers
from kdn.serve.settings import ServeSettings
from kdn.serve.store.app import mount_store
from kdn.serve.store.grants import Grant
from kdn.serve.store.texts import TextStore
from kdn.serve.telemetry import RecordTeller, log_lines, otlp_tracer, span_sink
from kdn.trace import Recorder

__all__ = ["listen", "make_server", "run", "served", "url_of"]


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket: clients may connect from now on and are answered once the server runs.

    Raises PortInUse when the port is taken, BadConfig for an address this machine does not have and
    for keys or a certificate that cannot be read: uvicorn would serve on without the application, or
    fail after the address is told.
    """
    read_keys(settings)
    _refuse_bad_certificate(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sends small pieces immediately; without it the body of an answer
    # waited 40 ms for the acknowledgement of its headers.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{where} is in use by another program; stop it or choose another --port"
            ) from error
        raise BadConfig(f"cannot listen on {where}: {error.strerror or error}") from error
    return listening


def _refuse_bad_certificate(settings: ServeSettings) -> None:
    certificate, key = settings.certificate, settings.private_key
    if certificate is None:
        if key is not None:
            raise BadConfig(f"the private key {key} comes without its certificate; give both")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's errors are such, too
        raise BadConfig(
            f"the certificate {certificate} with the key {key or 'in the same file'} cannot be used"
            f" ({error.strerror or error}); give PEM files that belong together"
        ) from error


def url_of(listening: socket.socket, scheme: str = "http") -> str:
    """Where the socket can be reached, with the port that was truly taken."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


_LAST_WORDS_S = 1
"""For the last events, once all answers have ended."""


def make_server(app: FastAPI, settings: ServeSettings, log_level: str = "info") -> Server:
    """A server that stops gracefully; `.run(sockets=[listening])` blocks until then."""
    # h11 is the parser that bounds the size of a head
    most = fitting_connections(settings.limits.connections)
    protocol = partial(BoundedProtocol, max_connections=most)
    config = uvicorn.Config(
        app,
        log_level=log_level,
        log_config=_all_to_stderr(),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
        server_header=False,
        http=cast("Any", protocol),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        proxy_headers=False,  # what a proxy says of its client decides nothing here
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    return Server(config, app.state.shutdown)


def _all_to_stderr() -> dict[str, Any]:
    """Standard output carries what a command says; it may be a pipe that is never emptied."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config


def run(
    kdns: Sequence[Kdn],
    listening: socket.socket,
    settings: ServeSettings,
    grants: tuple[Grant, ...] = (),
) -> None:
    """Serve these models until the process is asked to stop; running answers may finish. Blocks.

    The first one answers where a request names none.

    Raises EngineFailed when an engine has stopped by itself.

    With `grants` the store is served too, to callers that hold one of their tokens.
    """
    kdn, model = kdns[0], replace(served(kdns[0]), store_numbers=partial(_store_numbers, kdns))
    others = [served(one) for one in kdns[1:]]
    app = create_app(model, settings, version=package.__version__, own_keys=grants, others=others)
    if grants:
        mount_store(app, kdn.store, grants, TextStore(kdn, model))
    data = ConsoleData(kdn, app.state.recent, kdn.parts.clock, others=kdns[1:])
    mount_console(app, data, settings, has_admin=any(grant.admin for grant in grants))
    teller = _teller(kdns, app.state.recent)
    # Nothing can be answered any more: the process ends, so that what watches it begins another.
    for one in kdns:
        one.engine.when_stopped(lambda _failure: app.state.shutdown.begin(_AFTER_FAILURE_S))
    try:
        make_server(app, settings).run(sockets=[listening])
    finally:
        if teller is not None:
            teller.close()
    for one in kdns:
        if one.engine.failure is not None:
            raise one.engine.failure


def _teller(kdns: Sequence[Kdn], recent: RecentRequests) -> RecordTeller | None:
    """What tells of ended requests, as the settings ask. Raises MissingExtra."""
    asked, sinks = kdns[0].config.serve, []
    by_name = {one.name: one for one in kdns}

    def why(record: RequestRecord) -> dict[str, Any]:
        return {} if teller.is_behind else _why_line(by_name, record)

    if asked.log_requests != "never":
        sinks.append(log_lines(why=why if asked.log_requests == "why" else None))
    if asked.otel:
        sinks.append(span_sink(otlp_tracer(package.__version__)))
    if not sinks:
        return None
    teller = RecordTeller(sinks)
    recent.on_end = teller.tell
    return teller


def _why_line(kdns: Mapping[str, Kdn], record: RequestRecord) -> dict[str, Any]:
    """The place and the reason, and no text."""
    assert record.finish is not None
    found = kdns[record.model].parts.why.explain(
        record.request, record.finish.usage, ended_s=record.ended_s
    )
    return {"why": str(found.reason), "place": found.place, "role": found.role}


_AFTER_FAILURE_S = 1.0
"""Time to tell clients of the failure."""


def served(kdn: Kdn) -> ServedModel:
    """The parts of an open Kdn that HTTP needs."""
    return ServedModel(
        name=kdn.name,
        adapters=kdn.model.adapters,
        max_context=kdn.model.decoder.config.max_position,
        vocabulary=kdn.model.tokenizer,
        sampling=kdn.model.sampling,
        prompts=kdn.model.chat,
        engine=kdn.engine,
        compile=kdn.model.grammars.compile,
        asking=kdn.scoring.asking,
        reranker=kdn.scoring.reranker,
        embedder=_embedder(kdn),
        store_numbers=partial(_store_numbers, [kdn]),
        no_numbers=_no_numbers(kdn),
        steer_recipe=partial(_steer_recipe, kdn),
        why=kdn.parts.why,
        ask=kdn.answering.answer,
        bind=kdn.model.adapters.bind,
        loading=kdn.model,
    )


def _steer_recipe(kdn: Kdn, adapter: str | None, name: str) -> SteerRecipe:
    fingerprint = kdn.model.fingerprints.of_context(adapter)
    return RecipeFolder(kdn.config.home, fingerprint).named(name)


def _embedder(kdn: Kdn) -> ServedEmbedder | None:
    from kdn.rag.minilm import MAX_TOKENS

    try:
        resolve(EMBEDDER, kdn.config.home)
    except UnknownModel:
        return None
    return ServedEmbedder(EMBEDDER, MAX_TOKENS, lambda: kdn.embedder)


REUSE_FAILURES = {
    "plan": "reuse.failed",
    "store": "engine.retain_failed",
    "background": "background.failed",
}
"""What went without reuse, by the event that tells of it."""
STORE_EVENTS = {
    "lookup": "lookups",
    "hit": "hits",
    "miss": "misses",
    "corrupt": "corrupt",
    "lost": "lost",
    "put": "puts",
    "evict": "evicted",
    "drop": "dropped",
    "not_worth_writing": "not_worth_writing",
    "fail": "failed",
}
"""What the store counts, by its name in `StoreStat`."""


def _store_numbers(kdns: Sequence[Kdn]) -> StoreNumbers:
    """The store is one; what the quality guards saw goes by collection, those of later models by name.

    Callers read the numbers, so only collections of the tenant without a salt are named.
    """
    kdn = kdns[0]
    stat, ledger = kdn.store.stat(), kdn.cost.ledger()
    seen_by = {
        collection if one is kdn else f"{one.name}/{collection}": seen
        for one in kdns
        for collection, seen in one.parts.guard.stats().items()
    }
    traces = {id(one.trace): one.trace for one in kdns if isinstance(one.trace, Recorder)}.values()
    return StoreNumbers(
        blend={
            collection: {
                "compared": seen.samples,
                "agreed": seen.agreed,
                "mean_kl": seen.mean_kl,
                "ratio": seen.ratio,
            }
            for collection, seen in seen_by.items()
        },
        blend_collections=sum(len(one.parts.guard.all_stats()) for one in kdns),
        money_usd={"saved": ledger.saved.value, "spent": ledger.spent.value},
        blocks={name: tier.blocks for name, tier in stat.tiers.items()},
        size_bytes={name: tier.size_bytes for name, tier in stat.tiers.items()},
        errors=stat.errors,
        reuse_failures={
            step: sum(trace.count(name) for trace in traces)
            for step, name in REUSE_FAILURES.items()
        },
        counts={event: getattr(stat, name) for event, name in STORE_EVENTS.items()},
    )


def _no_numbers(kdn: Kdn) -> StoreNumbers:
    """As `_store_numbers`, before anything was counted."""
    tiers = dict.fromkeys((tier.name for tier in kdn.store.tiers), 0)
    return StoreNumbers(
        money_usd={"saved": 0.0, "spent": 0.0},
        blocks=tiers,
        size_bytes=tiers,
        reuse_failures=dict.fromkeys(REUSE_FAILURES, 0),
        counts=dict.fromkeys(STORE_EVENTS, 0),
    )
