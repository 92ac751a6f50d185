"""A model in memory, with what computes its attention on this machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from kdn.clock import Clock
from kdn.config import Config
from kdn.errors import BadInput
from kdn.machine.files import expanded
from kdn.machine.memory import keep_freed
from kdn.machine.threads import usable_cores
from kdn.model import Decoder, LoadedModel, load_model, resolve
from kdn.model.attention import Attention, FusedAttention, TorchAttention
from kdn.model.folder import FindKernels
from kdn.model.kernels import KernelAttention, Kernels, NoKernel, load_floats
from kdn.model.kernels import load as load_kernels
from kdn.trace import GuardedTrace, Trace

__all__ = ["KernelFinders", "load", "prepared"]


@dataclass(frozen=True)
class KernelFinders:
    """What finds the compiled kernels, by the dtype of rows; a first call compiles them."""

    bfloat16: FindKernels
    float32: FindKernels


def prepared(models: Sequence[str | Path], config: Config, trace: Trace) -> KernelFinders:
    """The process ready to load these models, and what finds its kernels.

    Raises UnknownModel, BadInput.
    """
    for model in models:
        if not isinstance(model, str | os.PathLike):
            raise BadInput(f"model is a {type(model).__name__}; it must be a name or a path")
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    elif torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
    keep_freed()
    for model in models:
        resolve(model, config.home)  # a wrong name must not wait for a compiler
    folder, trace = config.home / "kernels", GuardedTrace(trace)
    return KernelFinders(
        functools.cache(partial(_found, load_kernels, folder, trace)),
        functools.cache(partial(_found, load_floats, folder, trace)),
    )


def load(
    model: str | Path,
    config: Config,
    clock: Clock,
    finders: KernelFinders,
    *,
    device: str | None,
    dtype: str | None,
    quantization: str,
    adapters: Mapping[str, Path | str] | None,
    known: Sequence[LoadedModel] = (),
) -> tuple[LoadedModel, Attention]:
    """A model in memory, and how it computes attention here. See `load_model`."""
    on_device = config.engine.device if device is None else device
    loaded = load_model(
        model,
        cache_dir=config.models_folder,
        home=config.home,
        dtype=_choose_dtype(
            config.engine.dtype if dtype is None else dtype, on_device, config.home
        ),
        device=on_device,
        quantization=quantization,
        adapters={name: expanded(path) for name, path in (adapters or {}).items()},
        clock=clock,
        find_kernels=finders.bfloat16,
        find_float_kernels=finders.float32,
        known=known,
    )
    return loaded, _choose_attention(loaded.decoder, finders)


def _choose_dtype(asked: str, device: str, home: Path) -> str:
    """What was asked for; for `auto` what `kdn doctor` measured on this machine, if it did."""
    if asked != "auto":
        return asked
    from kdn.machine.doctor import measured_dtype

    return measured_dtype(home, "cuda" if device.startswith("cuda") else "cpu") or "auto"


def _found(load: Callable[[Path], Kernels], folder: Path, trace: Trace) -> Kernels | None:
    """The compiled kernels where there can be any; else the trace says why not."""
    try:
        return load(folder)
    except NoKernel as why:
        trace.event("kernels.none", why=str(why))
        return None


def _choose_attention(decoder: Decoder, finders: KernelFinders) -> Attention:
    """The compiled one where the decoder is computed with it, torch's own on a GPU, else plain torch."""
    if decoder.device.type == "cuda":
        return FusedAttention()
    kernels = (finders.bfloat16 if decoder.dtype == torch.bfloat16 else finders.float32)()
    if (
        kernels is not None
        and decoder.kernel == kernels.name
        and KernelAttention.suits(kernels, decoder.dtype, decoder.device, decoder.config.head_dim)
    ):
        return KernelAttention(kernels)
    return TorchAttention()
