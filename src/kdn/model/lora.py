"""LoRA adapters in PEFT's format: low-rank additions to a base model's matrices, by run of rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdn.errors import WeightsError
from kdn.model.config import ModelConfig
from kdn.model.digest import digest_tensors
from kdn.model.linear import Linear, build_linear
from kdn.model.weights import open_tensors

__all__ = ["MODULES", "AdapterRun", "LoraAdapter", "LoraPair", "deltas", "load_adapter"]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices an adapter may add to."""

_NAME = re.compile(r"\.layers\.(\d+)\.\w+\.(\w+)\.lora_(A|B)(?:\.\w+)?\.weight$")


@dataclass(frozen=True)
class LoraPair:
    """One addition: x -> up(down(x)), the scale inside `up`."""

    down: Linear
    up: Linear


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """A loaded adapter. Its digest is part of the fingerprint of everything computed with it."""

    name: str
    digest: str
    rank: int
    pairs: Mapping[tuple[int, str], LoraPair]
    """By (layer, module)."""


@dataclass(frozen=True, eq=False)
class AdapterRun:
    """Rows [start, stop) of a ragged batch use `adapter`."""

    start: int
    stop: int
    adapter: LoraAdapter


def deltas(
    runs: Sequence[AdapterRun], layer: int, module: str, x: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """For each run that adds to (layer, module): its rows, and the addition [rows, out]."""
    for run in runs:
        pair = run.adapter.pairs.get((layer, module))
        if pair is not None and run.stop > run.start:
            rows = slice(run.start, run.stop)
            yield rows, pair.up(pair.down(x[rows]))


def load_adapter(
    folder: Path, name: str, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> LoraAdapter:
    """The adapter in a PEFT folder, fitted to a base model of `config`.

    Raises WeightsError when the folder is not a LoRA adapter, or not one for this model.
    """
    settings = _settings(folder)
    with open_tensors(folder / "adapter_model.safetensors") as tensors:
        found = {key: tensors.get(key) for key in tensors.keys()}  # noqa: SIM118 not a dict
    halves = _halves(folder, found)
    pairs = {}
    for (layer, module), half in halves.items():
        _check(folder, config, layer, module, half)
        scale = _scale(settings, module, half["A"].shape[0])
        down = half["A"].to(device, dtype)
        up = (half["B"].float() * scale).to(device, dtype)
        pairs[layer, module] = LoraPair(build_linear(down), build_linear(up))
    digest = digest_tensors(found, extra=json.dumps(_meaning(settings), sort_keys=True))
    return LoraAdapter(name, digest, int(settings.get("r", 0)), pairs)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); an adapter is a PEFT folder with "
            "adapter_config.json and adapter_model.safetensors"
        ) from error
    if settings.get("peft_type") != "LORA":
        raise WeightsError(f"{folder} holds a {settings.get('peft_type')} adapter; kdn runs LORA")
    for option in ("use_dora", "fan_in_fan_out", "modules_to_save"):
        if settings.get(option):
            raise WeightsError(f"{folder}: the adapter uses {option}, which kdn does not compute")
    if settings.get("bias", "none") != "none":
        raise WeightsError(f"{folder}: the adapter trains biases, which kdn does not compute")
    return settings


def _meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what the tensors mean."""
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    return {name: settings.get(name) for name in names}


def _halves(folder: Path, found: Mapping[str, Tensor]) -> dict[tuple[int, str], dict[str, Tensor]]:
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in found.items():
        match = _NAME.search(key)
        if match is None or match[2] not in MODULES:
            raise WeightsError(f"{folder}: kdn does not know what the adapter's {key!r} adds to")
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    torn = [place for place, half in halves.items() if len(half) != 2]
    if torn or not halves:
        raise WeightsError(f"{folder}: the adapter lacks halves of {torn or 'everything'}")
    return halves


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """module -> (out, in)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (config.q_size, hidden),
        "k_proj": (config.kv_size, hidden),
        "v_proj": (config.kv_size, hidden),
        "o_proj": (hidden, config.q_size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def _check(
    folder: Path, config: ModelConfig, layer: int, module: str, half: Mapping[str, Tensor]
) -> None:
    out_size, in_size = _shapes(config)[module]
    fits = half["A"].shape[1] == in_size and half["B"].shape[0] == out_size
    if layer >= config.num_layers or not fits or half["A"].shape[0] != half["B"].shape[1]:
        raise WeightsError(
            f"{folder}: layer {layer} {module} has shapes {tuple(half['A'].shape)} and "
            f"{tuple(half['B'].shape)}, the base model wants {in_size} in and {out_size} out over "
            f"{config.num_layers} layers; the adapter belongs to another model"
        )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float((settings.get("alpha_pattern") or {}).get(module, settings.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
