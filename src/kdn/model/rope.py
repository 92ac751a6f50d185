"""Rotary position, applied in fp32 and rounded once, in the published rotate-half layout.

Keys are stored without it, so that a stored block may stand anywhere; the caller rotates them to
the position they have in the prompt at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdn.model.config import RopeConfig

__all__ = ["Rope", "rotate"]


class Rope:
    """The rotation of one model. Holds frequencies only; positions are arguments."""

    def __init__(
        self, config: RopeConfig, head_dim: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.head_dim = head_dim
        self._scale = _attention_scale(config)
        self._frequencies = _frequencies(config, head_dim).to(device)

    @property
    def length_dependent(self) -> bool:
        """Do the angles depend on the whole prompt's length? Then stored keys cannot be moved.

        Dynamic NTK stretches only beyond the trained context; kdn never goes beyond it, so that
        such a model is computed like an unstretched one, but not blended.
        """
        return self.config.kind == "dynamic"

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions[n] (int64): two fp32 [n, head_dim], for `rotate` only.

        The first half of sin carries a minus sign, and YaRN's attention scale is inside both.
        """
        angles = positions.to(torch.float32).unsqueeze(-1) * self._frequencies
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[n, heads, head_dim] turned by `Rope.tables`' cos and sin, in fp32, rounded once."""
    # Three exactly rounded operations, so a row's result never depends on its neighbours.
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), dim=-1) * sin.unsqueeze(1)
    return (x * cos.unsqueeze(1)).add_(turned).to(x.dtype)


def _attention_scale(config: RopeConfig) -> float:
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return float(config.attention_factor)
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _frequencies(config: RopeConfig, dim: int) -> Tensor:
    """Radians a position, [dim / 2] fp32, fastest first."""
    plain = 1.0 / (config.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    if config.kind == "linear":
        return plain / config.factor
    if config.kind == "llama3":
        return _llama3(config, plain)
    if config.kind == "yarn":
        return _yarn(config, plain, dim)
    return plain


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    """Slow waves are stretched by `factor`, fast ones kept, those between blended linearly."""
    low, high = config.low_freq_factor, config.high_freq_factor
    turns = config.original_max_position * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * plain / config.factor + keep * plain


def _yarn(config: RopeConfig, plain: Tensor, dim: int) -> Tensor:
    """YaRN (2309.00071, section 3.2): a ramp over dimensions between kept and stretched waves."""

    def dimension_of(turns: float) -> float:
        length = config.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(config.theta))

    low, high = dimension_of(config.beta_fast), dimension_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    stretch = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    return plain / config.factor * stretch + plain * (1 - stretch)
