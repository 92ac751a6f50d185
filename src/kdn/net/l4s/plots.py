"""Pictures: how delays are spread, and what was chosen when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import MissingExtra
from kdn.net.world.records import ECT0, MS, SECOND

__all__ = ["plot_choices", "plot_delays"]


def _figure(rows: int, height: float) -> tuple[Any, Any]:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingExtra("plots need matplotlib: pip install 'kdn[plot]'") from error
    figure, axes = plt.subplots(rows, 1, figsize=(8, height), layout="constrained")
    return figure, axes


def plot_delays(delays: Mapping[str, NDArray[np.float64]], title: str, path: Path) -> None:
    """The share of packets slower than x, one curve per policy, both axes logarithmic."""
    figure, axes = _figure(1, 4.5)
    for name, values in delays.items():
        ordered = np.sort(values)
        slower = 1.0 - (np.arange(len(ordered)) + 0.5) / len(ordered)
        axes.plot(np.maximum(ordered, 0.02), slower, label=name, linewidth=1.4)
    axes.axhline(0.01, color="grey", linewidth=0.6, linestyle=":")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="delay above propagation, ms",
        ylabel="share slower",
        ylim=(5e-4, 1),
        title=title,
    )
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_choices(
    log: NDArray[Any], baseline: NDArray[Any], base_ns: int, start_s: float, path: Path, title: str
) -> None:
    """A second of packets: delay over time, coloured by queue, above the flow that stays in L."""
    figure, (above, below) = _figure(2, 6.0)
    for axes, rows, name in ((above, log, title), (below, baseline, "all-L, same second")):
        t = rows["t_send"] / SECOND
        seen = rows[(t >= start_s) & (t < start_s + 1.0)]
        delay = (seen["t_deliver"] - seen["t_ready"] - base_ns) / MS
        classic = seen["sent_ecn"] == ECT0
        when = seen["t_send"] / SECOND
        axes.plot(when[~classic], delay[~classic], ".", color="tab:blue", label="low-latency queue")
        axes.plot(when[classic], delay[classic], ".", color="tab:orange", label="classic queue")
        axes.set(ylabel="ms above propagation", title=name)
        axes.legend(loc="upper right")
    top = max(above.get_ylim()[1], below.get_ylim()[1])
    above.set_ylim(0, top)
    below.set(ylim=(0, top), xlabel="s")
    figure.savefig(path, dpi=110)
