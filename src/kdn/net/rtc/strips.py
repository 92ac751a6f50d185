"""What a viewer would see: rows of pictures under each controller, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import MissingExtra
from kdn.net.rtc.clips import as_frame
from kdn.net.rtc.codec.picture import Picture
from kdn.net.rtc.real_call import RealCall
from kdn.net.world.records import SECOND
from kdn.plot import Figure, draw

__all__ = ["draw_rates", "draw_strip", "seen_at"]


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


def draw_rates(rates: Mapping[str, Sequence[float]], step_s: float, title: str, path: Path) -> None:
    """Lines of Mbit/s over seconds."""
    lines = {
        name: [(number * step_s, value) for number, value in enumerate(values)]
        for name, values in rates.items()
    }
    draw(Figure(title, "seconds", "Mbit/s", lines), path)


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
