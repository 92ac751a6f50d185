"""The network of the codec: a picture and its prediction to latents, and what arrived of them back.

Two pairs of encoder and decoder of one shape, `intra` (predicted from grey) and `inter` (predicted
from the moved reference).  The decoder hears which units of the latents arrived, if `masked`;
the twin that is trained without masks takes every latent for present (GRACE, NSDI 2024, section 4, is where
training under masks comes from; architecture and weights here are our own).

A cosine transform of 8 x 8 luma samples is the linear part of encoder and decoder when training begins;
what the rest adds is learned on top of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GROUPS", "LATENTS", "LEVELS", "SHRINK", "CodecNetwork", "HalfCodec"]

LATENTS = 36
"""Channels of the latents: 28 for luma, four for each chroma, to begin with."""
GROUPS = 2
"""Channels go into units by their number modulo this; a unit is lost or arrives as a whole."""
SHRINK = 8
"""Luma samples along one side of a latent position."""
LEVELS = 8
"""Rates; 0 is the lowest."""

_CHANNELS = 6
_WIDTH = 40


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.second(functional.leaky_relu(self.first(x), 0.1))
        return x + inner


def _cosines(size: int, keep: int) -> Tensor:
    """The `keep` smoothest functions of the two-dimensional cosine transform, [keep, size, size]."""
    place = torch.arange(size)
    rows = torch.cos(torch.pi / size * (place[None] + 0.5) * place[:, None]) * (2.0 / size) ** 0.5
    rows[0] /= 2.0**0.5
    order = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda at: (sum(at), at))
    return torch.stack([rows[i][:, None] * rows[j][None] for i, j in order[:keep]])


def _first_transform() -> Tensor:
    """The cosine transform on packed pictures, [36, 6, 4, 4]."""
    luma, chroma = _cosines(SHRINK, LATENTS - 8), _cosines(SHRINK // 2, 4)
    kernel = torch.zeros(LATENTS, _CHANNELS, SHRINK // 2, SHRINK // 2)
    for phase in range(4):
        kernel[:-8, phase] = luma[:, phase // 2 :: 2, phase % 2 :: 2]
    kernel[-8:-4, 4], kernel[-4:, 5] = chroma, chroma
    return kernel


def _small(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights near zero: what it adds to a linear path is learned."""
    with torch.no_grad():
        layer.weight.mul_(0.05)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


class HalfCodec(nn.Module):
    """One encoder and decoder. Pictures are [batch, 6, h, w], latents [batch, 36, h / 4, w / 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(2 * _CHANNELS, 32, 5, stride=2, padding=2)
        self.down2 = nn.Conv2d(32, _WIDTH, 5, stride=2, padding=2)
        self.inner = _Residual(_WIDTH)
        self.to_latents = _small(nn.Conv2d(_WIDTH, LATENTS, 3, padding=1))
        self.look1 = nn.Conv2d(_CHANNELS, 16, 5, stride=2, padding=2)
        self.look2 = nn.Conv2d(16, 16, 5, stride=2, padding=2)
        self.from_latents = nn.Conv2d(LATENTS + GROUPS + 16, _WIDTH, 3, padding=1)
        self.outer = nn.Sequential(_Residual(_WIDTH), _Residual(_WIDTH))
        self.up1 = nn.Conv2d(_WIDTH, 4 * 24, 3, padding=1)
        self.middle = nn.Conv2d(24 + 16, 24, 3, padding=1)
        self.up2 = _small(nn.Conv2d(24, 4 * _CHANNELS, 3, padding=1))
        self.polish1 = nn.Conv2d(2 * _CHANNELS, 16, 3, padding=1)
        self.polish2 = _small(nn.Conv2d(16, _CHANNELS, 3, padding=1))
        self.log_gain = nn.Parameter(torch.linspace(1.4, 3.6, LEVELS)[:, None].repeat(1, LATENTS))
        self.analysis = nn.Parameter(_first_transform())
        self.synthesis = nn.Parameter(_first_transform())
        self.log_weight = nn.Parameter(torch.zeros(LATENTS))

    def encode(self, picture: Tensor, predicted: Tensor) -> Tensor:
        """Latents before quantisation; multiply by `gain` and round."""
        x = functional.leaky_relu(self.down1(torch.cat((picture, predicted), 1)), 0.1)
        x = self.inner(functional.leaky_relu(self.down2(x), 0.1))
        plain = functional.conv2d(picture - predicted, self.analysis, stride=SHRINK // 2)
        latents: Tensor = plain + self.to_latents(x)
        return latents

    def gain(self, level: Tensor) -> Tensor:
        """What a level multiplies the latents by, [batch, 36, 1, 1]."""
        return torch.exp(self.log_gain[level])[:, :, None, None]

    def decode(self, latents: Tensor, present: Tensor, predicted: Tensor) -> Tensor:
        """A picture from latents (lost ones 0) and `present` [batch, 2, h / 4, w / 4] of 0 and 1."""
        look1 = functional.leaky_relu(self.look1(predicted), 0.1)
        look2 = functional.leaky_relu(self.look2(look1), 0.1)
        plain = functional.conv_transpose2d(latents, self.synthesis, stride=SHRINK // 2)
        x = torch.cat((latents, present - 1.0, look2), 1)
        x = self.outer(functional.leaky_relu(self.from_latents(x), 0.1))
        x = functional.pixel_shuffle(self.up1(x), 2)
        x = functional.leaky_relu(self.middle(torch.cat((x, look1), 1)), 0.1)
        x = predicted + plain + functional.pixel_shuffle(self.up2(x), 2)
        hidden = functional.leaky_relu(self.polish1(torch.cat((x, predicted), 1)), 0.1)
        polished: Tensor = self.polish2(hidden)
        return x + polished


class CodecNetwork(nn.Module):
    """Both halves, and whether the decoder was trained with losses."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        self.intra = HalfCodec()
        self.inter = HalfCodec()
