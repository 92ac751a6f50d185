"""What a viewer would see: rows of pictures under each controller, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import MissingExtra
from kdn.net.rtc.clips import as_frame, write_pictures
from kdn.net.rtc.codec.picture import Picture, blank
from kdn.net.rtc.real_call import RealCall
from kdn.net.world.records import SECOND
from kdn.plot import Figure, draw

__all__ = ["draw_rates", "draw_strip", "screens", "seen_at", "side_by_side"]

_BAR = 20
"""Rows of a caption."""


def seen_at(call: RealCall, seconds: float) -> tuple[Picture | None, str]:
    """The picture on the viewer's screen at a time of the call, and a caption."""
    frames = call.frames
    shown = np.nonzero((frames["t_decode"] > 0) & (frames["t_decode"] <= seconds * SECOND))[0]
    shown = np.array([n for n in shown if int(n) in call.shown], np.int64)
    if not len(shown):
        return None, "nothing yet"
    number = int(shown[-1])
    late_ms = seconds * 1000.0 - float(frames["t"][number]) / 1e6
    row = frames[number]
    loss = f", {row['loss']:.0%} lost" if row["loss"] > 0 else ""
    return call.shown[number], f"SSIM {row['quality']:.3f}, {late_ms:.0f} ms old{loss}"


def draw_strip(calls: Mapping[str, RealCall], times_s: Sequence[float], path: Path) -> None:
    """A picture file: one row per controller and one of originals, one column per time."""
    plt = _pyplot()
    rows = ["original", *calls]
    figure, axes = plt.subplots(
        len(rows), len(times_s), figsize=(3.2 * len(times_s), 2.2 * len(rows)), squeeze=False
    )
    for j, t in enumerate(times_s):
        any_call = next(iter(calls.values()))
        number = min(int(t * any_call.table.fps), len(any_call.frames) - 1)
        pictures: list[tuple[Picture | None, str]] = [(any_call.original(number), f"{t:.1f} s")]
        pictures += [seen_at(call, t) for call in calls.values()]
        for i, (picture, caption) in enumerate(pictures):
            place = axes[i][j]
            place.set_xticks([])
            place.set_yticks([])
            place.set_title(caption, fontsize=7)
            if picture is not None:
                height, width = any_call.original(number).y.shape
                place.imshow(_rgb(picture)[:height, :width])
    for i, name in enumerate(rows):
        axes[i][0].set_ylabel(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def screens(call: RealCall) -> Iterator[Picture]:
    """What stands on the viewer's screen at each moment of a picture, from the call's start to its end."""
    height, width = call.original(0).y.shape
    decoded = call.frames["t_decode"]
    coming = [int(n) for n in np.argsort(decoded, kind="stable") if decoded[n] > 0]
    coming = [n for n in coming if n in call.shown]
    at, newest = 0, -1
    for number in range(int(call.seconds * call.table.fps)):
        now = number / call.table.fps * SECOND
        while at < len(coming) and decoded[coming[at]] <= now:
            newest, at = max(newest, coming[at]), at + 1
        picture = call.shown[newest] if newest >= 0 else blank(height, width)
        yield _cropped(picture, height, width)


def side_by_side(calls: Mapping[str, RealCall], path: Path) -> None:
    """A video in real time: the original, and beside it what each viewer sees, each under its name."""
    first = next(iter(calls.values()))
    height, width = first.original(0).y.shape
    names = ["original", *calls]
    bars = [_caption(name, width) for name in names]
    columns = int(np.ceil(np.sqrt(len(names))))
    originals = (
        _cropped(first.original(number), height, width)
        for number in range(int(first.seconds * first.table.fps))
    )
    tiled = (
        _tiled([_under(bar, picture) for bar, picture in zip(bars, pictures, strict=True)], columns)
        for pictures in zip(originals, *(screens(call) for call in calls.values()), strict=True)
    )
    write_pictures(path, tiled, first.table.fps)


def draw_rates(rates: Mapping[str, Sequence[float]], step_s: float, title: str, path: Path) -> None:
    """Lines of Mbit/s over seconds."""
    lines = {
        name: [(number * step_s, value) for number, value in enumerate(values)]
        for name, values in rates.items()
    }
    draw(Figure(title, "seconds", "Mbit/s", lines), path)


def _cropped(picture: Picture, height: int, width: int) -> Picture:
    y, u, v = picture
    return Picture(y[:height, :width], *(plane[: height // 2, : width // 2] for plane in (u, v)))


def _caption(text: str, width: int) -> NDArray[np.uint8]:
    """The text as luma, black on white, [_BAR, width]."""
    plt = _pyplot()
    figure = plt.figure(figsize=(width / 100.0, _BAR / 100.0), dpi=100)
    figure.text(0.01, 0.2, text, fontsize=9)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[:_BAR, :width, 0]
    plt.close(figure)
    out = np.full((_BAR, width), 255, np.uint8)
    out[: drawn.shape[0], : drawn.shape[1]] = drawn
    return out


def _under(bar: NDArray[np.uint8], picture: Picture) -> Picture:
    """The picture with a caption above it."""
    grey = np.full((bar.shape[0] // 2, picture.u.shape[1]), 128, np.uint8)
    y, u, v = picture
    return Picture(np.concatenate((bar, y)), np.concatenate((grey, u)), np.concatenate((grey, v)))


def _tiled(pictures: Sequence[Picture], columns: int) -> Picture:
    """The pictures in rows of `columns`; grey where there is none."""
    height, width = pictures[0].y.shape
    missing = -len(pictures) % columns
    every = [*pictures, *[blank(height, width)] * missing]
    rows = [every[i : i + columns] for i in range(0, len(every), columns)]
    return Picture(*(np.block([[p[plane] for p in row] for row in rows]) for plane in range(3)))


def _rgb(picture: Picture) -> NDArray[np.uint8]:
    return np.asarray(as_frame(picture).to_ndarray(format="rgb24"))


def _pyplot() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("pictures are drawn by matplotlib: pip install 'kdn[net]'") from error
    return plt
