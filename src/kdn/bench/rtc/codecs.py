"""What the codecs do alone: rates and qualities by table, real pictures under losses that last, and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kdn.bench.common.result import Row
from kdn.clock import Clock
from kdn.net.rtc.choose import CODECS, codec
from kdn.net.rtc.clips import Clip, generated, packaged
from kdn.net.rtc.codec.network import LEVELS
from kdn.net.rtc.codec.neural import NeuralDecoder, NeuralEncoder, load_codec
from kdn.net.rtc.codec.picture import Picture, psnr_db, ssim
from kdn.net.rtc.codec.video import VideoCodec
from kdn.net.rtc.env import CallEnv
from kdn.net.rtc.judge import held_out_tables, training_tables

__all__ = [
    "LASTING",
    "at_equal_rate",
    "codec_lines",
    "lasting_lines",
    "lasting_rows",
    "lasting_summary",
    "shown_under",
    "speed_rows",
    "table_rows",
]

_WHOLE, _HIT = 4, 10
"""Pictures of a run that arrive whole, and pictures after them that are hit one after another."""
_BEGINS = (0, 32, 80)
"""Where runs begin in a clip: no cut lies within one."""
_TWICE = ", vectors twice"
LASTING = ("masked", f"masked{_TWICE}", "unmasked", f"unmasked{_TWICE}", "h264+fec30")
"""What is coded for losses that last: each neural codec as it begins, and once it has heard of losses."""
_LOST = (0.0, 0.1, 0.3, 0.5)
_CLASSICAL_KBPS = (50, 75, 110, 160, 240, 360)
_SPEED_S = 2.0

Line = Sequence[tuple[float, float]]


def table_rows() -> list[Row]:
    """Each codec's levels on each held-out clip: rate, and quality at three losses."""
    rows: list[Row] = []
    for coded in CODECS:
        for table in held_out_tables(coded):
            for level, kbps in enumerate(table.rates_kbps):
                row: Row = {"part": "codec", "codec": coded, "clip": table.name, "level": level}
                row["kbps"] = float(kbps)
                for tenth in (0, 3, 5) if table.survives else (0,):
                    row[f"psnr at {tenth}0 %"] = float(table.psnr_db[1:, level, tenth].mean())
                    row[f"ssim at {tenth}0 %"] = float(table.ssim[1:, level, tenth].mean())
                rows.append(row)
    return rows


@dataclass(frozen=True)
class _Run:
    """Consecutive pictures, and the packets of each."""

    pictures: Sequence[Picture]
    packets: Sequence[list[bytes]]
    fps: float

    @property
    def kbps(self) -> float:
        """The rate of the pictures that are hit, lost packets included."""
        hit = self.packets[_WHOLE:]
        return sum(len(packet) for sent in hit for packet in sent) / len(hit) * self.fps * 8e-3


def lasting_rows(coded: str, quick: bool) -> list[Row]:
    """Ten consecutive pictures of which each loses packets, without feedback, on the held-out clips.

    Each packet is lost alone.  A picture that does not decode leaves the one before it on the screen.
    Quick: one run of one clip at two levels.
    """
    name, twice, _ = coded.partition(_TWICE)
    begins, wanted, copies = _BEGINS[:1] if quick else _BEGINS, codec(name), 2 if twice else 1
    num = begins[-1] + _WHOLE + _HIT
    clips = [packaged("bikes", 208, num), *([] if quick else [generated(91, num, 208, 320)])]
    rows: list[Row] = []
    for clip in clips:
        for level in (1, 5) if quick else _levels(coded):
            runs = [_coded(wanted, clip, begin, level, copies) for begin in begins]
            labels: Row = {"part": "lasting", "codec": coded, "clip": clip.name, "level": level}
            labels["kbps"] = float(np.mean([run.kbps for run in runs]))
            for lost in _LOST:
                found = [_seen(wanted, run, lost, seed) for seed, run in enumerate(runs)]
                row: Row = labels | {"loss": lost}
                row |= {name: float(np.mean([one[name] for one in found])) for name in found[0]}
                rows.append(row)
    return rows


def _levels(coded: str) -> range:
    return range(len(_CLASSICAL_KBPS)) if coded.startswith("h264") else range(1, LEVELS, 2)


def _coded(codec: VideoCodec, clip: Clip, begin: int, level: int, copies: int) -> _Run:
    """One run at a level of the neural codec, or at a rate of the classical one."""
    pictures = clip.pictures[begin : begin + _WHOLE + _HIT]
    encoder = codec.encoder(clip.fps)
    if isinstance(encoder, NeuralEncoder):
        encoder.copies = copies
        packets = [encoder.encode_at(picture, lambda _size: level) for picture in pictures]
    else:
        budget = int(_CLASSICAL_KBPS[level] * 125 / clip.fps)
        packets = [encoder.encode(picture, budget) for picture in pictures]
    return _Run(pictures, packets, clip.fps)


def _seen(codec: VideoCodec, run: _Run, lost: float, seed: int) -> dict[str, float]:
    """Qualities of the pictures that were hit: in the mean, and of the last."""
    shown = shown_under(codec, run.packets, lost, seed)
    pairs = list(zip(shown, run.pictures, strict=True))[_WHOLE:]
    decibels = [psnr_db(picture, original) for picture, original in pairs]
    similar = [ssim(picture, original) for picture, original in pairs]
    return {
        "psnr mean": float(np.mean(decibels)),
        "psnr last": decibels[-1],
        "ssim mean": float(np.mean(similar)),
        "ssim last": similar[-1],
        "frozen": float(np.mean([a is b for a, b in pairwise(shown[_WHOLE - 1 :])])),
    }


def shown_under(
    codec: VideoCodec, packets: Sequence[list[bytes]], lost: float, seed: int
) -> list[Picture]:
    """What is on the screen after each picture; the first four arrive whole, of the rest each packet is
    lost alone with the likelihood `lost`."""
    random = np.random.default_rng(seed)
    decoder, shown = codec.decoder(), list[Picture]()
    for number, sent in enumerate(packets):
        arrives = random.random(len(sent)) >= (lost if number >= _WHOLE else 0.0)
        picture = decoder.decode([p for p, there in zip(sent, arrives, strict=True) if there])
        if picture is None:
            picture = shown[-1]
        shown.append(picture)
    return shown


def lasting_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What masking costs without loss and gains under losses that last, at equal rate, mean over clips.

    `codec_cost_db` is the twin less the masked codec; `codec_gain_N_db` the masked codec, which sends its
    vectors twice once it has heard of losses, less the twin at N % loss, in the mean of ten pictures;
    `codec_gain_30_last_db` is of the tenth. `codec_gain_30_masks_db` is what masking gains of that alone:
    both send their vectors twice.
    """
    lasting = [row for row in rows if row["part"] == "lasting"]
    asked = {
        "codec_cost_db": (0.0, "psnr mean", -1.0, ("masked", "unmasked")),
        "codec_gain_10_db": (0.1, "psnr mean", 1.0, (LASTING[1], "unmasked")),
        "codec_gain_30_db": (0.3, "psnr mean", 1.0, (LASTING[1], "unmasked")),
        "codec_gain_50_db": (0.5, "psnr mean", 1.0, (LASTING[1], "unmasked")),
        "codec_gain_30_last_db": (0.3, "psnr last", 1.0, (LASTING[1], "unmasked")),
        "codec_gain_30_masks_db": (0.3, "psnr mean", 1.0, (LASTING[1], LASTING[3])),
    }
    found: dict[str, float | None] = {}
    for key, (lost, number, sign, names) in asked.items():
        gains = []
        for clip in dict.fromkeys(row["clip"] for row in lasting):
            masked, twin = (
                [
                    (row["kbps"], row[number])
                    for row in lasting
                    if (row["codec"], row["clip"], row["loss"]) == (name, clip, lost)
                ]
                for name in names
            )
            gains.append(at_equal_rate(masked, twin))
        known = [gain for gain in gains if gain is not None]
        found[key] = sign * float(np.mean(known)) if known else None
    return found


def at_equal_rate(one: Line, other: Line) -> float | None:
    """How far `one` lies above `other`, lines of (rate, quality), in the mean over the log rates of both.

    None when their rates do not overlap.

    >>> at_equal_rate([(100, 30.0), (400, 34.0)], [(200, 31.0), (800, 33.0)])
    1.5
    """
    if not one or not other:
        return None
    first, second = (np.log2(np.array(sorted(line))[:, 0]) for line in (one, other))
    low, high = max(first[0], second[0]), min(first[-1], second[-1])
    if low >= high:
        return None
    knots = np.unique(np.clip(np.concatenate((first, second)), low, high))
    above = np.interp(knots, first, np.array(sorted(one))[:, 1]) - np.interp(
        knots, second, np.array(sorted(other))[:, 1]
    )
    return float(np.trapezoid(above, knots) / (high - low))


def speed_rows(clock: Clock, quick: bool) -> list[Row]:
    """Pictures a second, and environment steps a second, on one core."""
    clip, neural = packaged("bikes", 208, 12), load_codec()
    encoder, decoder = NeuralEncoder(neural), NeuralDecoder(neural)
    for picture in clip.pictures[:2]:  # what is compiled is compiled before the clock is read
        decoder.decode(encoder.encode(picture, 2500))
    start = clock.now()
    coded = [encoder.encode(picture, 2500) for picture in clip.pictures[2:]]
    encoding = (clock.now() - start) / len(coded)
    start = clock.now()
    for packets in coded:
        decoder.decode(packets)
    decoding = (clock.now() - start) / len(coded)
    env, steps = CallEnv(training_tables()), 0
    env.reset(seed=1)
    still = np.zeros(1, np.float32)
    env.step(still)
    start = clock.now()
    while clock.now() - start < (0.5 if quick else _SPEED_S):
        for _ in range(100):
            if env.step(still)[3]:
                env.reset()
        steps += 100
    speed = steps / (clock.now() - start)
    size = f"{clip.pictures[0].y.shape[1]} x {clip.pictures[0].y.shape[0]}"
    return [
        {
            "part": "speed",
            "size": size,
            "encoded per s": 1.0 / encoding,
            "decoded per s": 1.0 / decoding,
            "steps per s": speed,
        }
    ]


def codec_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Quality over rate on `bikes`: of each codec without loss, and of those that survive it at 30 %."""
    rates: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["part"] == "codec" and row["clip"] == "bikes":
            rates.setdefault(row["codec"], []).append((row["kbps"], row["psnr at 00 %"]))
            if "psnr at 30 %" in row:
                label = f"{row['codec']}, 30 % lost"
                rates.setdefault(label, []).append((row["kbps"], row["psnr at 30 %"]))
    return rates


def lasting_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Quality over rate on `bikes` in ten pictures of which each loses 30 %."""
    rates: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["part"] == "lasting" and row["clip"] == "bikes" and row["loss"] in (0.0, 0.3):
            label = f"{row['codec']}, {row['loss']:.0%} lost"
            rates.setdefault(label, []).append((row["kbps"], row["psnr mean"]))
    return rates
