"""Teach the codec: short runs of pictures, coded one from another, some of them under losses.

Half of the samples lose nothing, the other half a share of their units drawn from 0.1 to 0.7, each
unit alone.  The loss is distortion after the losses plus lambda times the rate.  The twin sees no loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdn.net.rtc.clips import Clip
from kdn.net.rtc.codec.motion import concealed, estimate, moved
from kdn.net.rtc.codec.network import GROUPS, LATENTS, LEVELS, CodecNetwork, HalfCodec
from kdn.net.rtc.codec.picture import BLOCK, Picture, blank, packed, unpacked

__all__ = ["CodecTraining", "train_codec"]

_PATCH = 64
_RUN = 3
_LAMBDAS = np.geomspace(0.0025, 0.12, LEVELS)
"""Weight of the squared error in grey levels beside bits per luma sample, by level."""


@dataclass(frozen=True)
class CodecTraining:
    """How long and how fast. `masked` False trains the twin."""

    minutes: float = 20.0
    batch: int = 12
    rate: float = 6e-4
    masked: bool = True
    seed: int = 1


def train_codec(
    clips: Sequence[Clip],
    config: CodecTraining,
    checkpoint: Path,
    tell: Callable[[int, float, float, float], None],
) -> CodecNetwork:
    """Train until `minutes` of processor time are used up, going on from `checkpoint` if it exists.

    `tell` hears (steps, share of the time used, squared error, bits per sample) now and then.
    """
    torch.manual_seed(config.seed)
    network = CodecNetwork(config.masked)
    optimizer = torch.optim.Adam(network.parameters(), config.rate)
    step, used = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        step, used = int(saved["step"]), float(saved["used"])
    random = np.random.default_rng((config.seed, step))
    began = time.process_time() - used
    errors, rates = [], []
    while (share := (time.process_time() - began) / (60 * config.minutes)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = config.rate * max(min(1.0, 2.0 * (1.0 - share)), 0.02)
        error, rate = _step(network, optimizer, _patches(clips, config.batch, random), random)
        errors.append(error)
        rates.append(rate)
        step += 1
        if step % 50 == 0:
            tell(step, share, float(np.mean(errors)), float(np.mean(rates)))
            errors, rates = [], []
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".part")
            torch.save(state | {"step": step, "used": time.process_time() - began}, partial)
            partial.replace(checkpoint)
    return network


def _step(
    network: CodecNetwork,
    optimizer: torch.optim.Optimizer,
    runs: list[list[Picture]],
    random: np.random.Generator,
) -> tuple[float, float]:
    """One gradient step over runs of pictures; (squared error, bits per luma sample) of it."""
    batch = len(runs)
    level = torch.from_numpy(random.integers(0, LEVELS, batch))
    weight = torch.from_numpy(_LAMBDAS[level.numpy()]).float()
    lossy = random.random(batch) < 0.5 if network.masked else np.zeros(batch, bool)
    share = np.where(lossy, random.uniform(0.1, 0.7, batch), 0.0)
    clean = [blank(_PATCH, _PATCH)] * batch
    shown = clean
    losses, errors, rates = [], [], []
    for t in range(_RUN):
        half = network.intra if t == 0 else network.inter
        current = [run[t] for run in runs]
        picture = _tensor(current)
        sent, seen = _predict(current, clean, shown, share, random, first=t == 0)
        latents = half.encode(picture, sent) * half.gain(level)
        rate = _bits(half, latents) / (_PATCH * _PATCH)
        rounded = (latents + (latents.detach().round() - latents.detach())) / half.gain(level)
        present = _present(share, rounded, random)
        mask = present.repeat(1, LATENTS // GROUPS, 1, 1)
        told = present if network.masked else torch.ones_like(present)
        out = half.decode(rounded * mask, told, seen)
        error = ((out - picture) * 255.0).square().mean((1, 2, 3))
        losses.append((weight * error + rate).mean())
        errors.append(error.detach().mean().item())
        rates.append(rate.detach().mean().item())
        shown = _pictures(out)
        if lossy.any():
            with torch.no_grad():
                clean = _pictures(half.decode(rounded, torch.ones_like(present), sent))
        else:
            clean = shown
    optimizer.zero_grad()
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(np.mean(errors)), float(np.mean(rates))


def _predict(
    current: list[Picture],
    clean: list[Picture],
    shown: list[Picture],
    share: NDArray[np.float64],
    random: np.random.Generator,
    first: bool,
) -> tuple[Tensor, Tensor]:
    """What the encoder predicts from, and what the decoder does after its losses."""
    if first:
        grey = _tensor(clean)
        return grey, grey
    sent, seen = [], []
    for now, own, other, lost in zip(current, clean, shown, share, strict=True):
        vectors = estimate(now, own)
        present = random.random(vectors.shape[:2]) >= lost
        sent.append(moved(own, vectors))
        seen.append(moved(other, concealed(vectors, present)))
    return _tensor(sent), _tensor(seen)


def _bits(half: HalfCodec, latents: Tensor) -> Tensor:
    """Bits of the latents, [batch], were they coded with a Laplace scale per unit and channel.

    The scale is what the unit's own channels have in the mean, since a unit is coded with its activity class.
    """
    noisy = latents + torch.rand_like(latents) - 0.5
    batch, _, height, width = latents.shape
    grouped = latents.abs().reshape(batch, LATENTS // GROUPS, GROUPS, height, width)
    activity = grouped.mean(1, keepdim=True).expand_as(grouped).reshape(latents.shape)
    weight = torch.softmax(half.log_weight, 0)[:, None, None] * LATENTS
    scale = activity * weight + 0.08
    upper, lower = _cdf(noisy + 0.5, scale), _cdf(noisy - 0.5, scale)
    return -torch.log2((upper - lower).clamp_min(1e-6)).sum((1, 2, 3))


def _cdf(x: Tensor, scale: Tensor) -> Tensor:
    return 0.5 + 0.5 * x.sign() * (1.0 - torch.exp(-x.abs() / scale))


def _present(share: NDArray[np.float64], latents: Tensor, random: np.random.Generator) -> Tensor:
    batch, _, height, width = latents.shape
    drawn = random.random((batch, GROUPS, height, width)) >= share[:, None, None, None]
    return torch.from_numpy(drawn.astype(np.float32))


def _patches(clips: Sequence[Clip], batch: int, random: np.random.Generator) -> list[list[Picture]]:
    """Runs of `_RUN` pictures cut from random clips, some of them mirrored or played backwards."""
    runs = []
    for _ in range(batch):
        clip = clips[int(random.integers(len(clips)))]
        height, width = clip.pictures[0].y.shape
        top = int(random.integers((height - _PATCH) // 2 + 1)) * 2
        left = int(random.integers((width - _PATCH) // 2 + 1)) * 2
        start = int(random.integers(len(clip.pictures) - _RUN + 1))
        order = range(start, start + _RUN)
        if random.random() < 0.5:
            order = order[::-1]
        mirror = bool(random.random() < 0.5)
        runs.append([_cut(clip.pictures[i], top, left, mirror) for i in order])
    return runs


def _cut(picture: Picture, top: int, left: int, mirror: bool) -> Picture:
    y = picture.y[top : top + _PATCH, left : left + _PATCH]
    t, x, half = top // 2, left // 2, _PATCH // 2
    planes = (y, picture.u[t : t + half, x : x + half], picture.v[t : t + half, x : x + half])
    return Picture(*(np.ascontiguousarray(p[:, ::-1] if mirror else p) for p in planes))


def _tensor(pictures: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack([packed(p) for p in pictures]))


def _pictures(tensor: Tensor) -> list[Picture]:
    return [unpacked(channels) for channels in tensor.detach().numpy()]


assert _PATCH % BLOCK == 0
