"""The change-focused loss: packets whose delay changes sharply are counted a second time.

They are rare, so their mean, added to everyone's mean, weighs each of them many times over.  The
re-implementation our reconstruction follows adds ten times a squared error in milliseconds; on
the squashed scale once is enough, and more makes every forecast nervous.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdn.net.l4s.transformer import QUANTILES

__all__ = ["loss_of", "sharp_changes"]

_SHARP_WEIGHT = 1.0
_LEAST_MS = 2.0
_LEAST_SHARE = 0.2
_QUANTILE_WEIGHT = 2.0
_SPIKE_WEIGHT = 0.2


def sharp_changes(delay_ms: Tensor, last_ms: Tensor) -> Tensor:
    """Where a delay differs from its queue's last known one by over 2 ms and a fifth of it."""
    change = (delay_ms - last_ms).abs()
    return (change > _LEAST_MS) & (change > _LEAST_SHARE * last_ms)


def loss_of(out: Tensor, delay_ms: Tensor, last_ms: Tensor, valid: Tensor) -> Tensor:
    """Of predictions [B, Q, 5] for true delays [B, Q]; positions not `valid` do not count."""
    target = torch.asinh(delay_ms) - torch.asinh(last_ms)
    sharp = sharp_changes(delay_ms, last_ms) & valid
    error = functional.smooth_l1_loss(out[..., 0], target, reduction="none", beta=0.5)
    base = error[valid].mean()
    steep = error[sharp].mean() if bool(sharp.any()) else base * 0.0
    spike = functional.binary_cross_entropy_with_logits(out[..., 1][valid], sharp[valid].float())
    pinball = base * 0.0
    for i, share in enumerate(QUANTILES):
        off = (target - out[..., 2 + i])[valid]
        pinball = pinball + torch.maximum(share * off, (share - 1) * off).mean()
    return base + _SHARP_WEIGHT * steep + _SPIKE_WEIGHT * spike + _QUANTILE_WEIGHT * pinball
