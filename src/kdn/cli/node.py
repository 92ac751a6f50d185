"""kdn node: a store on a port, for engines on other machines."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.serve import leave, need_serve_extra
from kdn.cli.show import emit, say
from kdn.machine.process import hide_arguments, will_end_closed

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
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated", help="Serve everyone that reaches the port, without a key."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve this machine's stored KV to other engines until Ctrl-C. Needs no model."""
    need_serve_extra()
    import kdn
    from kdn.api.store import open_configured_store
    from kdn.errors import BadConfig
    from kdn.serve import (
        Limits,
        ServeSettings,
        create_node_app,
        is_loopback,
        listen,
        make_server,
        read_grants,
        url_of,
    )

    hide_arguments([admin_key or "", *(one.partition("=")[2] for one in tenant or ())])
    config = read_settings(home)
    admin_key, host = admin_key or config.serve.store_key, host or config.serve.host
    tenants = tuple(tenant or config.serve.tenant_keys)
    has_key = bool(admin_key or tenants)
    if not has_key and not allow_unauthenticated:
        if not is_loopback(host):
            raise BadConfig(
                f"{host} can be reached from other machines and no key is set: give --admin-key or "
                "--tenant NAME=KEY, or --allow-unauthenticated if everyone there may use the store"
            )
        admin_key = secrets.token_urlsafe(24)
    grants = read_grants(admin_key, tenants)
    settings = ServeSettings(
        host=host,
        port=port,
        api_keys=tuple(grant.token for grant in grants),
        allow_unauthenticated=allow_unauthenticated,
        check_host=None if has_key or not is_loopback(host) else True,
        grace_s=config.serve.grace_s,
        limits=Limits.of_node(config.serve),
        certificate=certificate or config.serve.certificate,
        private_key=private_key or config.serve.private_key,
    )
    with listen(settings) as listening, open_configured_store(config) as store:
        url = url_of(listening, settings.scheme)
        if as_json:
            made = {} if has_key or admin_key is None else {"admin_key": admin_key}
            emit({"url": url, "blocks": store.stat().blocks, **made})
        say(f"the store of {config.store_folder} at {url} (Ctrl-C stops)")
        if not has_key and admin_key is not None:
            say(f"no key is set; for this run the admin's is {admin_key}")
        signal.signal(signal.SIGTERM, leave)
        app = create_node_app(store, settings, grants, version=kdn.__version__)
        will_end_closed()
        make_server(app, settings).run(sockets=[listening])
