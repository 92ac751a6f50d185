"""kdn models: which models go by a name, and bringing one here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.show import emit, say, size_text, table, tell
from kdn.machine.text import counted

__all__ = ["models"]

models = typer.Typer(help="List models and bring them here.", no_args_is_help=True)


@models.command("list")
def list_models(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the models that go by a name, and which of them are here."""
    from kdn.model import known_models
    from kdn.model.recommended import HUB_MODELS

    folder = read_settings(home).home
    rows: list[dict[str, Any]] = [
        {
            "name": model.name,
            "purpose": model.purpose,
            "size_bytes": model.size_bytes,
            "path": _path(model.name, folder),
            "about": model.about,
        }
        for model in known_models()
    ]
    rows += [
        {
            "name": model.name,
            "purpose": "generate",
            "size_bytes": model.download_bytes,
            "path": _path(model.name, folder) or _path(f"{model.name}-gguf", folder),
            "about": f"{model.strength}; {size_text(model.need().total_bytes)} of memory at 8k tokens"
            f"{', licence to be accepted on the hub' if model.is_gated else ''}",
            "hub_id": model.hub_id,
            "gguf": {"name": f"{model.name}-gguf", "size_bytes": model.gguf_bytes},
        }
        for model in HUB_MODELS
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


@models.command()
def recommend(
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e9, help="Memory that may be used; else what is free on this machine."
        ),
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the longest prompt.")] = 8192,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the best model that fits here, and what it needs. Downloads nothing."""
    from kdn.machine.facts import free_memory_bytes
    from kdn.model.recommended import recommend as choose

    memory_bytes = free_memory_bytes() if memory_gb is None else int(memory_gb * 1e9)
    found = choose(memory_bytes, context)
    name, int8 = ("smollm2-135m", False) if found is None else (found[0].name, found[1])
    need = None if found is None else found[0].need(context, int8=int8).total_bytes
    if as_json:
        size = None if found is None else found[0].download_bytes
        here = _path(name, read_settings(home).home)
        emit({"name": name, "int8": int8, "need_bytes": need, "download_bytes": size, "path": here})
        return
    tell(
        f"of {size_text(memory_bytes)} of memory, with prompts of {counted(context, 'token')}: {name}"
    )
    if found is None or need is None:
        tell("nothing larger fits; it is for trying the machinery, and its answers are often wrong")
        return
    model = found[0]
    flag = " --quantization int8" if int8 else ""
    told = f" with{flag}" if int8 else ""
    tell(f"it is good for {model.strength}, and needs about {size_text(need)}{told}")
    if model.is_gated:
        tell(f"accept its licence ({model.licence}) at huggingface.co/{model.hub_id} first")
    tell(f"kdn models get {name}      ({size_text(model.download_bytes)} to download)")
    tell(f"kdn serve --model {name}{flag}")
    tell("the packaged smollm2-135m is for trying the machinery: its answers are often wrong")
