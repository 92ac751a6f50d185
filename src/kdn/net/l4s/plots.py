"""Pictures: how delays are spread, and what was chosen when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.net.world.records import ECT0, MS, SECOND
from kdn.plot import STYLES, canvas, save

__all__ = ["plot_choices", "plot_delays"]


def plot_delays(delays: Mapping[str, NDArray[np.float64]], title: str, path: Path) -> None:
    """The share of packets slower than x, one curve per policy, both axes logarithmic."""
    figure, (axes,) = canvas(size=(8.0, 4.5))
    for (name, values), (colour, dash, _) in zip(delays.items(), STYLES, strict=False):
        ordered = np.sort(values)
        slower = 1.0 - (np.arange(len(ordered)) + 0.5) / len(ordered)
        axes.plot(np.maximum(ordered, 0.02), slower, color=colour, linestyle=dash)
        middle = np.searchsorted(-slower, -0.05)  # where curves of different tails are well apart
        axes.annotate(name, (float(ordered[middle]), 0.05), xytext=(4, 4), color=colour,
                      textcoords="offset points")  # fmt: skip
    axes.axhline(0.01, color="#999999", linewidth=0.9)
    axes.annotate("P99", (0.005, 0.0105), xycoords=("axes fraction", "data"), color="#777777")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="delay above propagation, ms",
        ylabel="share slower",
        ylim=(5e-4, 1),
        title=title,
    )
    save(figure, path)


def plot_choices(
    log: NDArray[Any], baseline: NDArray[Any], base_ns: int, start_s: float, path: Path, title: str
) -> None:
    """A second of packets: delay over time, coloured by queue, above the flow that stays in L."""
    figure, (above, below) = canvas(2, (8.0, 6.0))
    for axes, rows, name in ((above, log, title), (below, baseline, "all-L, same second")):
        t = rows["t_send"] / SECOND
        seen = rows[(t >= start_s) & (t < start_s + 1.0)]
        delay = (seen["t_deliver"] - seen["t_ready"] - base_ns) / MS
        classic = seen["sent_ecn"] == ECT0
        when = seen["t_send"] / SECOND
        for chosen, (colour, _, marker), told, height in (
            (~classic, STYLES[1], "low-latency queue", 0.95),
            (classic, STYLES[2], "classic queue", 0.87),
        ):
            axes.plot(when[chosen], delay[chosen], marker, color=colour, markersize=2.5)
            if chosen.any():
                axes.annotate(told, (1.01, height), xycoords="axes fraction", color=colour)
        axes.set(ylabel="ms above propagation", title=name)
    top = max(above.get_ylim()[1], below.get_ylim()[1])
    above.set_ylim(0, top)
    below.set(ylim=(0, top), xlabel="s")
    save(figure, path)
