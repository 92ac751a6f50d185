"""kdn scale: the configuration of other engines, ready to paste."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kdn.cli.commands import Commands
from kdn.cli.options import JsonOption
from kdn.cli.show import say
from kdn.machine.files import expanded

__all__ = ["app"]

app = typer.Typer(cls=Commands, no_args_is_help=True, help="kdn's store inside other engines.")


@app.callback()
def scale() -> None:
    """kdn's store inside other engines."""


@app.command("vllm-args")
def vllm_args(
    *,
    folder: Annotated[
        Path | None, typer.Option(help="The disk tier's folder; none without it.", file_okay=False)
    ] = None,
    memory_bytes: Annotated[int, typer.Option(help="The memory tier of each vLLM process.")] = 2
    << 30,
    redis_url: Annotated[str | None, typer.Option(help="A Redis, as redis://host:6379/0.")] = None,
    peer_url: Annotated[str | None, typer.Option(help="A `kdn node`.")] = None,
    peer_token: Annotated[str | None, typer.Option(help="The node's token.")] = None,
    objects_url: Annotated[str | None, typer.Option(help="As s3://bucket/prefix.")] = None,
    save: Annotated[bool, typer.Option(help="Store the KV of prompts, or only load.")] = True,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="An adapter that vLLM serves; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what `vllm serve` needs to keep its KV in kdn's store.

    A tier that does not answer just now is told of; an adapter without files is refused.
    """
    from kdn.errors import BadInput
    from kdn.scale.settings import SharedStores, read_settings
    from kdn.scale.startup import check_adapters

    given: dict[str, Any] = {
        "folder": None if folder is None else str(expanded(folder).absolute()),
        "memory_bytes": memory_bytes,
        "redis_url": redis_url,
        "peer_url": peer_url,
        "peer_token": peer_token,
        "objects_url": objects_url,
        "save": None if save else False,
    }
    told = {name: value for name, value in given.items() if value is not None}
    settings = read_settings(told)
    if not settings.is_shared:
        raise BadInput(
            "no tier outlives vLLM; give --folder, --redis-url, --peer-url or --objects-url"
        )
    adapters = check_adapters(lora or ())
    stores = SharedStores()
    # far addresses are refused here, in words; the folder is vLLM's to make
    store = stores.enter(msgspec.structs.replace(settings, folder=None))
    failures = stores.failures(store)
    stores.leave(store)
    for tier, reason in failures.items():
        say(f"warning: the tier {tier} does not answer: {reason}")
    transfer = {
        "kv_connector": "KdnConnector",
        "kv_connector_module_path": "kdn.scale.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": told,
    }
    text = msgspec.json.encode(transfer).decode()
    line = f"--kv-transfer-config {shlex.quote(text)}"
    if adapters:
        named = " ".join(shlex.quote(f"{name}={path}") for name, path in adapters.items())
        line += f" --enable-lora --lora-modules {named}"
    print(text if as_json else line)
    if not as_json:
        say("kdn must be importable by vLLM: pip install kdn in vLLM's environment")
