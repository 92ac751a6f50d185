"""What is chosen for a model before it runs: number type, kernels, attention, how quick it is here."""

from __future__ import annotations

from pathlib import Path

from kdn.config import Config
from kdn.core import JctModel
from kdn.model import Decoder
from kdn.model.attention import Attention, FusedAttention, TorchAttention
from kdn.model.kernels import KernelAttention, Kernels, NoKernel, load
from kdn.reuse.load_or_compute import EstimateS
from kdn.trace import Trace

__all__ = ["choose_attention", "choose_dtype", "find_kernels", "prefill_estimate"]


def choose_dtype(asked: str, device: str, home: Path) -> str:
    """What was asked for; for `auto` what `kdn doctor` measured on this machine, if it did."""
    if asked != "auto":
        return asked
    from kdn.machine.doctor import measured_dtype

    return measured_dtype(home, "cuda" if device.startswith("cuda") else "cpu") or "auto"


def find_kernels(home: Path, trace: Trace) -> Kernels | None:
    """The compiled kernels where there can be any; else the trace says why not."""
    try:
        return load(home / "kernels")
    except NoKernel as why:
        trace.event("kernels.none", why=str(why))
        return None


def choose_attention(decoder: Decoder, kernel: Kernels | None) -> Attention:
    """The compiled one where it can run, torch's own on a GPU, else plain torch."""
    if decoder.device.type == "cuda":
        return FusedAttention()
    if kernel and KernelAttention.suits(decoder.dtype, decoder.device, decoder.config.head_dim):
        return KernelAttention(kernel)
    return TorchAttention()


def prefill_estimate(config: Config, jct: JctModel) -> EstimateS | None:
    """What a prefill takes, when it is known how quick it is here: said, or fitted."""
    rate = config.store.prefill_tokens_per_s
    if rate is not None:
        return lambda new, _cached: new / rate
    return jct.seconds if jct.source == "fit" else None
