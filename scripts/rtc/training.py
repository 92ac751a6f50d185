"""Teach the codec: runs of pictures, coded one from another, some of them under losses that last.

As in GRACE (NSDI 2024, section 4), most samples lose nothing.  In the others most pictures lose a share of
their units drawn from 0.1 to 0.6, each unit alone, so that the decoder predicts from a damaged picture, too.
The loss is distortion after the losses plus lambda times the rate.  The twin sees no loss.
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

_PATCH = 96
_RUN = 3
"""Pictures of a sample that are learned from."""
_LOSSES = (0.1, 0.6)
_HIT = 0.85
"""The likelihood that a picture of a lossy sample loses anything."""
_EXACT_FROM = 0.85
"""The share of the time from which products are of 32 bits; before, bfloat16 is a quarter faster."""
_LAMBDAS = np.geomspace(0.0025, 0.12, LEVELS)
"""Weight of the squared error in grey levels beside bits per luma sample, by level."""


@dataclass(frozen=True)
class CodecTraining:
    """How long and how fast. `masked` False trains the twin."""

    minutes: float = 20.0
    batch: int = 8
    rate: float = 6e-4
    masked: bool = True
    seed: int = 1
    lossy: float = 0.25
    """The share of samples that lose anything, if `masked`."""
    most_before: int = 3
    """Inter pictures of a sample that are coded before those that are learned from, when one is refined."""
    begin: Path | None = None
    """A checkpoint whose network is refined: its intra half stays, and runs are longer."""


@dataclass
class _Sample:
    """A batch of runs while it is coded: what the sender and the viewer have of the newest picture."""

    level: Tensor
    share: NDArray[np.float64]
    """What each run loses of a picture that is hit; 0 for runs without loss."""
    clean: list[Picture]
    shown: list[Picture]


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
    if config.begin is not None:
        network.load_state_dict(torch.load(config.begin, weights_only=True)["network"])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a sixth faster
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
        with torch.autocast("cpu", torch.bfloat16, enabled=share < _EXACT_FROM):
            loss, error, rate = _run(network, clips, config, random)
        _learn(network, optimizer, loss)
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


def _learn(network: CodecNetwork, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _run(
    network: CodecNetwork,
    clips: Sequence[Clip],
    config: CodecTraining,
    random: np.random.Generator,
) -> tuple[Tensor, float, float]:
    """(loss, squared error, bits per luma sample) of one batch of runs."""
    refined = config.begin is not None
    before = 1 + int(random.integers(config.most_before + 1)) if refined else 0
    runs = _patches(clips, config.batch, before + _RUN, random)
    lossy = random.random(config.batch) < (config.lossy if config.masked else 0.0)
    grey = [blank(_PATCH, _PATCH)] * config.batch
    sample = _Sample(
        torch.from_numpy(random.integers(0, LEVELS, config.batch)),
        np.where(lossy, random.uniform(*_LOSSES, config.batch), 0.0),
        grey,
        grey,
    )
    found = []
    for t in range(before + _RUN):
        with torch.set_grad_enabled(t >= before):
            parts = _picture(network, sample, [run[t] for run in runs], random, intra=t == 0)
        if t >= before:
            found.append(torch.stack(parts))
    loss, error, rate = torch.stack(found).unbind(1)
    return loss.sum(), float(error.detach().mean()), float(rate.detach().mean())


def _picture(
    network: CodecNetwork,
    sample: _Sample,
    current: list[Picture],
    random: np.random.Generator,
    intra: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Code one picture of every run: (loss, squared error, bits per luma sample). Intra ones lose nothing."""
    half = network.intra if intra else network.inter
    hit = (random.random(len(current)) < _HIT) & (not intra)
    share = np.where(hit, sample.share, 0.0)
    picture, gain = _tensor(current), half.gain(sample.level)
    sent, seen = _predict(current, sample.clean, sample.shown, share, random, first=intra)
    latents = half.encode(picture, sent) * gain
    rate = _bits(half, latents) / (_PATCH * _PATCH)
    rounded = (latents + (latents.detach().round() - latents.detach())) / gain
    present = _present(share, rounded, random)
    mask = present.repeat(1, LATENTS // GROUPS, 1, 1)
    out = half.decode(rounded * mask, present, seen)
    error = ((out - picture) * 255.0).square().mean((1, 2, 3))
    weight = torch.from_numpy(_LAMBDAS[sample.level.numpy()]).float()
    sample.shown = _pictures(out)
    sample.clean = list(sample.shown)
    lossy = np.nonzero(sample.share)[0]
    if len(lossy):
        with torch.no_grad():
            whole = half.decode(rounded[lossy], torch.ones_like(present[lossy]), sent[lossy])
        for index, own in zip(lossy, _pictures(whole), strict=True):
            sample.clean[index] = own
    return (weight * error + rate).mean(), error.mean(), rate.mean()


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


def _patches(
    clips: Sequence[Clip], batch: int, num: int, random: np.random.Generator
) -> list[list[Picture]]:
    """Runs of `num` pictures cut from random clips, some of them mirrored or played backwards."""
    runs = []
    for _ in range(batch):
        clip = clips[int(random.integers(len(clips)))]
        height, width = clip.pictures[0].y.shape
        top = int(random.integers((height - _PATCH) // 2 + 1)) * 2
        left = int(random.integers((width - _PATCH) // 2 + 1)) * 2
        start = int(random.integers(len(clip.pictures) - num + 1))
        order = range(start, start + num)
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
