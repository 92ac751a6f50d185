"""kdn router: several servers behind one address."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.serve import leave, need_serve_extra
from kdn.cli.show import emit, say
from kdn.machine.process import hide_arguments, will_end_closed

__all__ = ["router"]


def router(
    *,
    server: Annotated[
        list[str],
        typer.Option(help="A server's address, as http://HOST:PORT; repeat it for each."),
    ],
    rule: Annotated[
        str, typer.Option(help="kv-aware, round-robin, least-loaded or prefix-hash.")
    ] = "kv-aware",
    tokens_per_s: Annotated[
        float,
        typer.Option(
            min=1, max=1e9, help="How fast a server computes prompts; corrected as answers come."
        ),
    ] = 5000.0,
    cached_tokens_per_s: Annotated[
        float, typer.Option(min=1, max=1e9, help="How fast it loads what it has stored.")
    ] = 100_000.0,
    stored_tokens: Annotated[
        int, typer.Option(min=128, help="How many prompt tokens a server's store holds.")
    ] = 1 << 25,
    server_key: Annotated[
        str | None, typer.Option(help="Sent to the servers in place of the caller's key.")
    ] = None,
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="The address; loopback by default.")] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8200,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="What callers must send; may be repeated. Better: KDN_SERVE_API_KEY."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Keys of callers by their SHA-256.", dir_okay=False)
    ] = None,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Serve other machines without a key.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve many vLLM or kdn servers at one address; each request goes where its KV is stored."""
    need_serve_extra()
    import kdn
    from kdn.core import JctModel
    from kdn.scale.router.app import RouterSettings, create_router_app
    from kdn.scale.router.content import CHUNK_TOKENS
    from kdn.serve import Limits, ServeSettings, listen, make_server, url_of

    hide_arguments([*(api_key or ()), server_key or ""])
    config = read_settings(home)
    configured = (config.serve.api_key,) if config.serve.api_key else ()
    routing = RouterSettings(
        servers=tuple(server),
        rule=rule,
        prefill=JctModel(0.0, 1 / tokens_per_s, 0.0, 1 / cached_tokens_per_s),
        server_key=server_key,
        capacity_chunks=max(1, stored_tokens // CHUNK_TOKENS),
    )
    settings = ServeSettings(
        host=host or config.serve.host,
        port=port,
        api_keys=tuple(api_key or configured),
        salted_keys=config.serve.salted_keys,
        key_file=key_file or config.serve.key_file,
        allow_unauthenticated=allow_unauthenticated,
        limits=Limits.of(config.serve),
        grace_s=config.serve.grace_s,
        certificate=config.serve.certificate,
        private_key=config.serve.private_key,
    )
    app = create_router_app(routing, settings, version=kdn.__version__)
    with listen(settings) as listening:
        url = url_of(listening, settings.scheme)
        if as_json:
            emit({"url": url, "servers": list(routing.servers), "rule": rule})
        say(f"{len(routing.servers)} servers at {url}/v1 (Ctrl-C stops)")
        signal.signal(signal.SIGTERM, leave)
        will_end_closed()
        make_server(app, settings).run(sockets=[listening])
