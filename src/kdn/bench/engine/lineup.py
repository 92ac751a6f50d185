"""Who is there for the engine benchmark, and why the others are not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kdn import api
from kdn.bench.common.result import BenchOptions, scratch_folder
from kdn.bench.engine.contestants import Contestant, KdnContestant, RivalProcess, Transformers
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.engine import kv_shape
from kdn.errors import EngineFailed
from kdn.model import ModelConfig, resolve
from kdn.model.gguf.file import unpack_gguf

__all__ = [
    "LLAMA",
    "OURS",
    "REFERENCE",
    "VLLM",
    "Lineup",
    "assemble",
    "opened",
    "start_rival",
    "weights",
]

OURS, REFERENCE, VLLM, LLAMA = "kdn", "transformers", "vllm", "llama.cpp"
_SCRIPTS = Path(__file__).parents[4] / "scripts" / "rivals"
_STORE_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Lineup:
    """The contestants, ready to run, and what is known of the model they all run."""

    ours: KdnContestant
    config: ModelConfig
    device: str
    dtype: str
    weight_bytes: int
    others: dict[str, Contestant]
    absent: dict[str, str] = field(default_factory=dict)
    """Why a rival is not among the others."""


@contextmanager
def opened(
    options: BenchOptions,
    scratch: Path | None = None,
    *,
    name: str = "ours",
    quantization: str = "none",
    **engine: int,
) -> Iterator[api.Kdn]:
    """kdn with a fresh store, in `scratch` if given; models come from the usual home.

    `engine` are settings of the engine that differ from the usual ones; each such kdn has a `name`.
    Without `speculative_tokens` nothing is guessed: an answer to random tokens soon repeats itself, so that
    guesses would win more than they do on anybody's text.
    """
    home = options.home or home_folder(os.environ)
    usual = EngineConfig(threads=options.threads, speculative_tokens=0)
    with scratch_folder() if scratch is None else nullcontext(scratch) as folder:
        store = StoreConfig(
            folder=folder / f"store-{name}-{quantization}",
            disk_bytes=_STORE_BYTES,
            memory_bytes=_STORE_BYTES,
        )
        config = Config(home=home, engine=msgspec.structs.replace(usual, **engine), store=store)
        with api.open(options.model, config=options.note(config), quantization=quantization) as kdn:
            yield kdn


@contextmanager
def assemble(options: BenchOptions, scratch: Path, rivals: Sequence[str]) -> Iterator[Lineup]:
    """Everybody of `rivals` who can run here, with kdn; all are gone afterwards."""
    with ExitStack() as stack:
        options.say("starting kdn")
        service = stack.enter_context(opened(options, scratch))
        decoder = service.model.decoder
        lineup = Lineup(
            ours=KdnContestant(service.engine, options.clock, service.store.flush),
            config=decoder.config,
            device=str(decoder.device),
            dtype=kv_shape(service.model).dtype,
            weight_bytes=decoder.weight_bytes,
            others={},
        )
        for name in rivals:
            options.say(f"starting {name}")
            try:
                lineup.others[name] = _start(name, options, lineup, scratch, stack)
            except (OSError, ImportError, EngineFailed) as error:
                lineup.absent[name] = str(error)
        yield lineup


def _start(
    name: str, options: BenchOptions, lineup: Lineup, scratch: Path, stack: ExitStack
) -> Contestant:
    source, folder = weights(options, lineup.dtype)
    if name == REFERENCE:
        return Transformers(folder, lineup.device, lineup.dtype, options.clock)
    rival = start_rival(name, options, scratch, source if name == LLAMA else folder)
    stack.callback(rival.close)
    return rival


def start_rival(name: str, options: BenchOptions, scratch: Path, model: Path) -> RivalProcess:
    """A rival in its own environment with `model`, ready; the caller ends it. Raises EngineFailed."""
    script = {VLLM: "vllm_cpu.py", LLAMA: "llama_cpp_python.py"}[name]
    python = options.rivals / "bin" / "python"
    if not python.exists():
        raise EngineFailed(f"{options.rivals.name} is not there; `make rivals` builds it")
    command: list[str | Path] = [
        python,
        _SCRIPTS / script,
        "--model",
        model,
        "--threads",
        str(options.threads),
    ]
    if name == VLLM:
        command += ["--dtype", options.machine_dtype()]
    return RivalProcess(command, scratch / f"{name}.log")


def weights(options: BenchOptions, dtype: str) -> tuple[Path, Path]:
    """The model's own file or folder, and a Hugging Face folder with the same weights."""
    import torch

    home = options.home or home_folder(os.environ)
    source = resolve(options.model, home)
    if source.is_dir():
        return source, source
    return source, unpack_gguf(source, home / "models" / "unpacked", getattr(torch, dtype))
