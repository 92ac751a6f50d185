"""kdn models: which models go by a name, and bringing one here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.show import emit, say, size_text, table, tell

__all__ = ["models"]

models = typer.Typer(help="List models and bring them here.", no_args_is_help=True)


@models.command("list")
def list_models(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the models that go by a name, and which of them are here."""
    from kdn.model import known_models

    folder = read_settings(home).home
    rows = [
        {
            "name": model.name,
            "purpose": model.purpose,
            "size_bytes": model.size_bytes,
            "path": _path(model.name, folder),
            "about": model.about,
        }
        for model in known_models()
    ]
    if as_json:
        emit({"models": rows})
        return
    table(
        "",
        ("name", "size", "here", "about"),
        [
            (row["name"], size_text(float(str(row["size_bytes"]))), _yes(row["path"]), row["about"])
            for row in rows
        ],
    )


def _yes(path: object) -> str:
    return "yes" if path else "no"


def _path(name: str, home: Path) -> str | None:
    from kdn.errors import UnknownModel
    from kdn.model import resolve

    try:
        return str(resolve(name, home))
    except UnknownModel:
        return None


@models.command("get")
def get_model(
    name: Annotated[str, typer.Argument(help="A known name, or a hub id such as owner/name.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a model here, once. This is the only command that downloads anything."""
    from kdn.model import get

    path = get(name, read_settings(home).home, say)
    if as_json:
        emit({"name": name, "path": path})
    else:
        tell(str(path))
