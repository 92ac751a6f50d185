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

from kdn.core import TokenIds
from kdn.errors import WeightsError
from kdn.model.config import ModelConfig
from kdn.model.digest import digest_tensors
from kdn.model.linear import Linear, build_linear
from kdn.model.weights import open_tensors, read_json, weights_gate

__all__ = ["MODULES", "AdapterRun", "LoraAdapter", "LoraPair", "deltas", "load_adapter"]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices an adapter may add to."""

_NAME = re.compile(
    r"^(?:base_model\.model\.)?((?:[\w.]+\.)?layers\.(\d{1,6})\.\w+\.(\w+))\.lora_(A|B)(?:\.\w+)?\.weight$"
)
_NOT_COMPUTED = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Options of PEFT that change what an adapter computes."""
_INVOCATION = "alora_invocation_tokens"
_MAX_PATTERN, _MAX_REPEATS = 200, 3
"""Patterns of strangers are matched: longer ones, or more repetitions, could take for ever."""


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
    invocation: TokenIds = ()
    """An aLoRA (2504.12397) acts from the last place on where a prompt holds these tokens; empty: it
    acts on all rows."""

    def begins(self, token_ids: TokenIds) -> int | None:
        """The first position of a prompt that it acts on; None where nothing invokes it."""
        size = len(self.invocation)
        if not size:
            return 0
        starts = range(len(token_ids) - size, -1, -1)
        return next((at for at in starts if token_ids[at : at + size] == self.invocation), None)


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
    with weights_gate(folder):
        return _load(folder, name, config, dtype, device)


def _load(
    folder: Path, name: str, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> LoraAdapter:
    settings = _settings(folder)
    with open_tensors(folder / "adapter_model.safetensors") as tensors:
        found = {key: tensors.get(key) for key in tensors.keys()}  # noqa: SIM118 not a dict
    pairs = {}
    halves = _halves(folder, found)
    for path, half in halves.items():
        layer, module = path.layer, path.module
        _check(folder, config, path, half)
        scale = _scale(folder, settings, path.name, half["A"].shape[0])
        down = half["A"].to(device, dtype)
        up = (half["B"].float() * scale).to(device, dtype)
        pairs[layer, module] = LoraPair(build_linear(down), build_linear(up))
    digest = digest_tensors(found, extra=json.dumps(_meaning(settings), sort_keys=True))
    rank = max(half["A"].shape[0] for half in halves.values())
    return LoraAdapter(name, digest, rank, pairs, _invocation(folder, settings, config))


def _settings(folder: Path) -> dict[str, Any]:
    holds = "an adapter is a PEFT folder with adapter_config.json and adapter_model.safetensors"
    settings = read_json(folder / "adapter_config.json", holds, "adapter")
    if settings.get("peft_type") != "LORA":
        raise WeightsError(f"{folder} holds a {settings.get('peft_type')} adapter; kdn runs LORA")
    for option in _NOT_COMPUTED:
        if settings.get(option):
            raise WeightsError(f"{folder}: the adapter uses {option}, which kdn does not compute")
    if settings.get("bias", "none") != "none":
        raise WeightsError(f"{folder}: the adapter trains biases, which kdn does not compute")
    return settings


def _meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what the tensors mean."""
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    found = {name: settings.get(name) for name in names}
    if settings.get(_INVOCATION) is not None:
        found[_INVOCATION] = settings[_INVOCATION]
    return found


def _invocation(folder: Path, settings: Mapping[str, Any], config: ModelConfig) -> TokenIds:
    """The tokens that invoke an aLoRA; none for an ordinary adapter."""
    found = settings.get(_INVOCATION)
    if found is None:
        return ()
    size = config.vocab_size
    if not isinstance(found, list) or not found or not all(_is_token(one, size) for one in found):
        raise WeightsError(
            f"{folder}: {_INVOCATION} is {found!r:.80}; it must list token ids below {size}"
        )
    return tuple(found)


def _is_token(found: object, vocab_size: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < vocab_size


@dataclass(frozen=True)
class _Place:
    """A matrix of the base model, by its path there."""

    name: str
    layer: int
    module: str


def _halves(folder: Path, found: Mapping[str, Tensor]) -> dict[_Place, dict[str, Tensor]]:
    halves: dict[_Place, dict[str, Tensor]] = {}
    for key, tensor in found.items():
        match = _NAME.match(key)
        if match is None or match[3] not in MODULES:
            raise WeightsError(f"{folder}: kdn does not know what the adapter's {key!r} adds to")
        place = _Place(match[1], int(match[2]), match[3])
        halves.setdefault(place, {})[match[4]] = tensor
    torn = [place.name for place, half in halves.items() if len(half) != 2]
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


def _check(folder: Path, config: ModelConfig, place: _Place, half: Mapping[str, Tensor]) -> None:
    out_size, in_size = _shapes(config)[place.module]
    down, up = tuple(half["A"].shape), tuple(half["B"].shape)
    fits = (
        len(down) == 2 and down[0] > 0 and (down, up) == ((down[0], in_size), (out_size, down[0]))
    )
    if place.layer >= config.num_layers or not fits:
        raise WeightsError(
            f"{folder}: layer {place.layer} {place.module} has shapes {down} and "
            f"{up}, the base model wants {in_size} in and {out_size} out over "
            f"{config.num_layers} layers; the adapter belongs to another model"
        )


def _scale(folder: Path, settings: Mapping[str, Any], path: str, rank: int) -> float:
    """What the addition to the matrix at `path` is multiplied by, as PEFT has it."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightsError(f"{folder}: alpha_pattern is no mapping; fetch the adapter again")
    alpha = settings.get("lora_alpha", 8)
    for pattern, own in patterns.items():
        if _names(folder, pattern, path):
            alpha = own
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WeightsError(f"{folder}: lora_alpha of {path} is {alpha!r}, no number")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _names(folder: Path, pattern: str, path: str) -> bool:
    """Does PEFT's key mean the matrix? It is a pattern that must match whole steps at the path's end."""
    repeats = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+?{]", pattern):
        raise WeightsError(
            f"{folder}: kdn does not match the pattern {pattern[:80]!r}; it is too intricate"
        )
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as error:
        raise WeightsError(f"{folder}: {pattern!r} is no pattern ({error})") from error
