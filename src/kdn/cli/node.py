"""kdn node: a store on a port, for engines on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.serve import need_serve_extra
from kdn.cli.show import emit, say

__all__ = ["node"]


def node(
    *,
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="The address; loopback by default.")] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8100,
    admin_key: Annotated[
        str | None, typer.Option(help="The admin's token. Better: KDN_SERVE_STORE_KEY.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KEY", help="A tenant's token; * for all. May be repeated."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Serve TLS with this certificate (PEM).", dir_okay=False)
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="The certificate's key (PEM).", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve this machine's stored KV to other engines until Ctrl-C. Needs no model."""
    need_serve_extra()
    import kdn
    from kdn.api.store import open_configured_store
    from kdn.serve import (
        Limits,
        ServeSettings,
        create_node_app,
        listen,
        make_server,
        read_grants,
        url_of,
    )

    config = read_settings(home)
    grants = read_grants(
        admin_key or config.serve.store_key, tuple(tenant or config.serve.tenant_keys)
    )
    settings = ServeSettings(
        host=host or config.serve.host,
        port=port,
        api_keys=tuple(grant.token for grant in grants),
        limits=Limits(body_bytes=1 << 30, all_bytes=1 << 32),
        certificate=certificate or config.serve.certificate,
        private_key=private_key or config.serve.private_key,
    )
    with listen(settings) as listening, open_configured_store(config) as store:
        url = url_of(listening, settings.scheme)
        if as_json:
            emit({"url": url, "blocks": store.stat().blocks})
        say(f"the store of {config.store_folder} at {url} (Ctrl-C stops)")
        app = create_node_app(store, settings, grants, version=kdn.__version__)
        make_server(app, settings).run(sockets=[listening])
