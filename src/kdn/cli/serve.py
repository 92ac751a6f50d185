"""kdn serve: the OpenAI API on a port."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import (
    DeviceOption,
    DtypeOption,
    HomeOption,
    JsonOption,
    ModelChoice,
    QuantizationOption,
    read_settings,
)
from kdn.cli.show import emit, say
from kdn.machine.process import hide_arguments, will_end_closed

__all__ = ["leave", "need_serve_extra", "serve"]


def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="A known name, a model folder or a .gguf file; may be repeated. [default: smollm2-135m]",
        ),
    ] = None,
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="The address; loopback by default.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="What callers must send; may be repeated. Better: KDN_SERVE_API_KEY."),
    ] = None,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Serve other machines without a key.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Keys by their SHA-256, each with its salts.", dir_okay=False),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = "none",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME[@MODEL]=FOLDER",
            help="A LoRA adapter, of the first model where none is named; may be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve models with OpenAI's API, files and batches included, until Ctrl-C."""
    need_serve_extra()
    from kdn.serve import Limits, ServeSettings, listen, read_grants, url_of
    from kdn.serve.run import run

    hide_arguments(api_key or ())
    config = read_settings(home)
    configured = (config.serve.api_key,) if config.serve.api_key else ()
    settings = ServeSettings(
        host=host or config.serve.host,
        port=config.serve.port if port is None else port,
        api_keys=tuple(api_key or configured),
        salted_keys=config.serve.salted_keys,
        key_file=key_file or config.serve.key_file,
        allow_unauthenticated=allow_unauthenticated,
        limits=Limits.of(config.serve),
        adapters_folder=config.serve.adapters_folder,
        grace_s=config.serve.grace_s,
        batch_folder=config.home / "batches",
        certificate=config.serve.certificate,
        private_key=config.serve.private_key,
    )
    grants = read_grants(config.serve.store_key, config.serve.tenant_keys)
    # The port first: that it is taken must not come out only after a model was loaded.
    with listen(settings) as listening:
        url = url_of(listening, settings.scheme)
        choice = ModelChoice("", home, device, dtype, quantization, tuple(adapter or ()))
        with choice.open_all(model or ["smollm2-135m"], config) as models:
            if as_json:
                adapters = sorted(name for one in models.values() for name in one.model.adapters)
                first = models.first.name
                emit({"url": url, "model": first, "models": list(models), "adapters": adapters})
            signal.signal(signal.SIGTERM, leave)
            say(f"{', '.join(models)} at {url}/v1 (Ctrl-C stops)")
            will_end_closed()
            run(list(models.values()), listening, settings, grants)


def leave(_signal: int, _frame: object) -> None:
    """The server has ended in good order; what the store holds back must still be written."""
    raise typer.Exit


def need_serve_extra() -> None:
    """Raises MissingExtra, naming what is to be installed."""
    from importlib.util import find_spec

    from kdn.errors import MissingExtra

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise MissingExtra(f"serving needs {', '.join(missing)}: pip install 'kdn[serve]'")
