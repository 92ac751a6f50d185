"""The commands of `kdn`, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from kdn.cli.ask import ask, chat
from kdn.cli.batch import app as batch
from kdn.cli.bench import bench
from kdn.cli.commands import Commands
from kdn.cli.cost import cost
from kdn.cli.demo import demo
from kdn.cli.doctor import doctor
from kdn.cli.ingest import ingest
from kdn.cli.label import label
from kdn.cli.models import models
from kdn.cli.net import app as net
from kdn.cli.node import node
from kdn.cli.rerank import rerank
from kdn.cli.router import router
from kdn.cli.scale import app as scale
from kdn.cli.serve import serve
from kdn.cli.share import app as share
from kdn.cli.show import tell
from kdn.cli.steer import app as steer
from kdn.cli.store_text import store

__all__ = ["app"]


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(describe)
    for command in (ask, bench, chat, demo, doctor, ingest, label, node, rerank, router, serve):
        app.command()(command)
    app.add_typer(batch, name="batch")
    app.add_typer(cost, name="cost")
    app.add_typer(models, name="models")
    app.add_typer(steer, name="steer")
    app.add_typer(store, name="store")
    app.add_typer(net, name="net")
    app.add_typer(scale, name="scale")
    app.add_typer(share, name="share")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        import kdn

        tell(f"kdn {kdn.__version__}")
        raise typer.Exit


def describe(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Prefill shared text once, keep its KV cache, and reuse it everywhere."""


app = build_app()
