"""Options that many commands share, each said once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdn.errors import BadConfig, BadInput
from kdn.machine.files import expanded, is_there, output_mode, refuse_output, refuse_unwritable

if TYPE_CHECKING:
    from kdn.api import Kdn, OpenModels
    from kdn.config import Config
    from kdn.scale.remote import RemoteEngine

__all__ = [
    "AdapterOption",
    "DeviceOption",
    "DtypeOption",
    "EngineChoice",
    "HomeOption",
    "JsonOption",
    "ModelChoice",
    "ModelOption",
    "QuantizationOption",
    "SeedOption",
    "ShareOption",
    "first_adapter",
    "output_file",
    "output_folder",
    "read_settings",
]

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A known name, a model folder or a .gguf file.")
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Where models, stored KV and the library live.", file_okay=False),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; auto by default.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="bfloat16, float16 or float32; auto by default.")
]
QuantizationOption = Annotated[
    str, typer.Option(help="Keep weights as int8 or int4; none keeps them as stored.")
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=FOLDER", help="A LoRA adapter; may be repeated."),
]
ShareOption = Annotated[
    Literal["exact", "published", "best"] | None,
    typer.Option(
        help="May KV that a sibling of the model has computed stand in? As set, by default."
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="For everything drawn at random.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
]


def read_settings(home: Path | None) -> Config:
    """kdn.toml and the environment, for this home folder."""
    from kdn.config import load_config

    return load_config(os.environ, home=home)


def first_adapter(given: Sequence[str] | None) -> str | None:
    """The name of the first of --adapter, which is the one that answers."""
    return given[0].partition("=")[0] if given else None


def output_file(path: Path | None) -> Path | None:
    """As a callback of an option: that the file can be written is known before any work is done.

    Raises BadInput.
    """
    if path is not None:
        refuse_output(path)
    return path


def output_folder(path: Path | None) -> Path | None:
    """As `output_file`, for a folder, which may be missing."""
    if path is None:
        return None
    there = path.absolute()
    while output_mode(there) is None and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise BadInput(f"{path}: {there} is a file; name a folder")
    refuse_unwritable(path, there)
    return path


@dataclass(frozen=True)
class ModelChoice:
    """Which model to open, and how: five options of a `grouped` command."""

    model: ModelOption = "smollm2-135m"
    home: HomeOption = None
    device: DeviceOption = None
    dtype: DtypeOption = None
    quantization: QuantizationOption = "none"
    adapters: tuple[str, ...] = ()

    def using(self, adapters: Sequence[str] | None) -> ModelChoice:
        """The same with these adapters, as --adapter gives them."""
        return replace(self, adapters=tuple(adapters or ()))

    def open(self, config: Config | None = None) -> Kdn:
        """The model, its store and its library, ready. Raises KdnError."""
        import kdn

        return kdn.open(
            self.model,
            home=self.home if config is None else None,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            adapters=dict(_adapter(one, self.model) for one in self.adapters),
            config=config,
        )

    def open_all(self, models: Sequence[str], config: Config) -> OpenModels:
        """Several models over one store, each perhaps as NAME=MODEL, with the adapters NAME[@MODEL]=FOLDER.

        Raises KdnError.
        """
        import kdn

        chosen = dict(_named(one) for one in models)
        if len(chosen) < len(models):
            raise BadConfig("two models are given under one name; give one another: -m NAME=MODEL")
        adapters: dict[str, dict[str, Path]] = {}
        for one in self.adapters:
            name, at, rest = one.partition("@")
            of_model, equals, folder = rest.partition("=")
            if at and equals and "=" not in name:
                adapters.setdefault(of_model, {})[name] = expanded(folder)
            else:
                first = next(iter(chosen))
                name, path = _adapter(one, chosen[first])
                adapters.setdefault(first, {})[name] = path
        return kdn.open_models(
            chosen,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            adapters=adapters,
            config=config,
        )


@dataclass(frozen=True)
class EngineChoice:
    """A server that is asked in place of a model of ours: three options of a `grouped` command."""

    engine: Annotated[
        str | None,
        typer.Option(help="Ask a server with OpenAI's API instead, as http://HOST:PORT."),
    ] = None
    engine_model: Annotated[
        str | None, typer.Option(help="Its model; the first one by default.")
    ] = None
    engine_key: Annotated[
        str | None, typer.Option(envvar="KDN_ENGINE_KEY", help="Its key. Better: KDN_ENGINE_KEY.")
    ] = None

    def open(self, choice: ModelChoice, more: Mapping[str, object]) -> RemoteEngine:
        """That server. Raises BadInput for options of a model of ours, which a server would ignore."""
        from kdn.machine.process import hide_arguments
        from kdn.scale.remote import JsonClient, RemoteEngine

        hide_arguments([self.engine_key or ""])
        unused = {
            "device": choice.device,
            "dtype": choice.dtype,
            "quantization": choice.quantization != "none",
            **more,
        }
        given = [name for name, value in unused.items() if value]
        if given:
            raise BadInput(
                f"--{given[0]} is for a model of this machine; leave it out with --engine"
            )
        return RemoteEngine(JsonClient(str(self.engine), self.engine_key), self.engine_model)


def _named(given: str) -> tuple[str, str]:
    """What callers know the model by, and which it is: NAME=MODEL, or its own name."""
    name, equals, model = given.partition("=")
    if equals and name and model and "/" not in name and not is_there(given):
        return name, model
    from kdn.model import name_of_model

    return name_of_model(given), given


def _adapter(given: str, model: str) -> tuple[str, Path]:
    """Its name and folder; a name alone is that of an adapter that comes with kdn for this model."""
    from kdn.rank import packaged_adapters

    name, equals, folder = given.partition("=")
    own = packaged_adapters(model)
    if not equals and name in own:
        return name, own[name]
    if not (name and equals and folder):
        there = f", or one of {', '.join(own)}" if own else ""
        raise BadConfig(f"--adapter {given!r}: write NAME=FOLDER{there}")
    return name, expanded(folder)
