"""The one style of kdn's pictures.

Lines are named where they end, in colours that are told apart in grey and by colour-blind readers (Okabe
and Ito's, ordered from dark to light, each with a dash and a marker of its own); intervals are drawn as
bars; there is no frame and no box of keys. Equal figures give equal files.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdn.errors import BadInput, MissingExtra
from kdn.machine.files import READABLE, publish_file
from kdn.plot.figure import Figure

__all__ = ["STYLES", "canvas", "draw", "save"]

STYLES: tuple[tuple[str, str, str], ...] = (
    ("#000000", "-", "o"),
    ("#0072B2", "-", "s"),
    ("#D55E00", "-", "^"),
    ("#009E73", "--", "D"),
    ("#CC79A7", "--", "v"),
    ("#56B4E9", "-.", "P"),
    ("#E69F00", "-.", "X"),
    ("#7F7F7F", ":", "*"),
)
"""Colour, dash and marker of the first line, the second, and so on; they begin again after the last."""
_INK = "#333333"
_RC = {
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.0,
    "svg.fonttype": "path",
    "figure.dpi": 110.0,
}
_EARLY = 0.75
"""A line that ends left of this share of the axis is named beside its end, where no other is in the way."""
_NAME_WIDTH = 0.25
"""What a name takes at the most, as a share of the axis."""
_LINE_HEIGHT = 0.052
"""The least distance of two names at the right, as a share of the axis."""


def canvas(rows: int = 1, size: tuple[float, float] = (7.0, 4.0)) -> tuple[Any, list[Any]]:
    """An empty picture in the style, with that many axes below one another.

    Raises MissingExtra without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingExtra("a picture needs matplotlib: pip install 'kdn[plot]'") from error
    mpl.rcParams.update(_RC)
    made = Canvas(figsize=size, layout="constrained")
    axes = made.subplots(rows, 1, squeeze=False)[:, 0]
    for one in axes:
        one.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        one.set_axisbelow(True)
    return made, list(axes)


def save(made: Any, path: Path) -> None:
    """Write the picture in the format that its name ends in; without a date, so that equal ones are equal.

    Raises BadInput for a format that there is not, StoreError where the file cannot be written.
    """
    import matplotlib as mpl

    metadata = {"Date": None} if path.suffix == ".svg" else None
    drawn = io.BytesIO()
    try:
        with mpl.rc_context({"svg.hashsalt": path.stem}):
            made.savefig(drawn, format=path.suffix[1:] or None, metadata=metadata)
    except ValueError as error:
        raise BadInput(f"a picture cannot be written to {path}: {error}") from error
    publish_file(path, drawn.getvalue(), READABLE)


def draw(figure: Figure, path: Path) -> None:
    """Write the figure. Raises MissingExtra without matplotlib, BadInput for an impossible name."""
    height = 4.0 if figure.x_label else 0.9 + 0.34 * len(figure.lines)
    made, (axes,) = canvas(size=(7.0, height))
    axes.set_title(figure.title)
    if figure.x_label:
        _draw_lines(axes, figure)
    else:
        _draw_values(axes, figure)
    save(made, path)


def _draw_lines(axes: Any, figure: Figure) -> None:
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    if figure.has_log_x:
        axes.set_xscale("log")
    if figure.has_log_y:
        axes.set_yscale("log")
    _plain_ticks(axes, figure)
    if figure.level is not None:
        axes.axhline(figure.level, color="#999999", linewidth=0.9, zorder=1)
    lines = [(name, list(points)) for name, points in figure.lines.items() if points]
    for number, (name, points) in enumerate(lines):
        colour, dash, marker = STYLES[number % len(STYLES)]
        x, y = [x for x, _ in points], [y for _, y in points]
        joined = figure.joined and len(points) > 1
        axes.plot(x, y, color=colour, linestyle=dash if joined else "", marker=marker,
                  markevery=max(1, len(x) // 40))  # fmt: skip
        if bounds := figure.intervals.get(name):
            low = [max(mid - end, 0.0) for mid, (end, _) in zip(y, bounds, strict=True)]
            high = [max(end - mid, 0.0) for mid, (_, end) in zip(y, bounds, strict=True)]
            axes.errorbar(
                x, y, yerr=(low, high), fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.7
            )
    if not figure.has_log_y and all(y >= 0 for _, points in lines for _, y in points):
        axes.set_ylim(bottom=0)
    _name_lines(axes, [(name, points[-1]) for name, points in lines])


def _plain_ticks(axes: Any, figure: Figure) -> None:
    """Numbers as people write them (2,000; 0.05), and the measured places where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    told = FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis, is_log in ((axes.xaxis, figure.has_log_x), (axes.yaxis, figure.has_log_y)):
        axis.set_major_formatter(told)
        if is_log:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_formatter(NullFormatter())
    places = sorted({x for points in figure.lines.values() for x, _ in points})
    spread = all(b >= 1.25 * a for a, b in itertools.pairwise(places))
    if figure.has_log_x and 2 <= len(places) <= 9 and spread:
        axes.set_xticks(places)
        axes.xaxis.set_minor_locator(NullLocator())


def _name_lines(axes: Any, ends: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Each name at the right of its line's end, moved apart where they would cover one another."""
    if len(ends) < 2:
        return
    axes.autoscale_view()
    shares = [_share(axes, place) for _, place in ends]
    at = [y for _, y in shares]
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    early = named_beside(shares)
    for i in early:
        name, place = ends[i]
        axes.annotate(name, xy=place, xytext=(7, 0), textcoords="offset points", va="center",
                      color=STYLES[i % len(STYLES)][0], annotation_clip=False, path_effects=halo)  # fmt: skip
    order = sorted((i for i in range(len(ends)) if i not in early), key=lambda i: at[i])
    placed = _apart([at[i] for i in order])
    for i, height in zip(order, placed, strict=True):
        name, place = ends[i]
        colour = STYLES[i % len(STYLES)][0]
        axes.annotate(
            name, xy=place, xytext=(1.02, height), textcoords="axes fraction", color=colour,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def named_beside(ends: Sequence[tuple[float, float]]) -> set[int]:
    """The numbers of the ends, in shares of the axes, beside which there is room for a name."""
    return {
        i
        for i, (x, y) in enumerate(ends)
        if x < _EARLY
        and not any(
            other != i and 0 <= to - x < _NAME_WIDTH and abs(height - y) < _LINE_HEIGHT
            for other, (to, height) in enumerate(ends)
        )
    }


def _share(axes: Any, place: tuple[float, float]) -> tuple[float, float]:
    """A place as shares of the axes."""
    x, y = axes.transLimits.transform(axes.transScale.transform(place))
    return float(x), float(y)


def _apart(heights: Sequence[float]) -> list[float]:
    """Ascending heights within the axis, at least a line apart, and near where they were."""
    placed = list[float]()
    for height in heights:
        least = placed[-1] + _LINE_HEIGHT if placed else 0.0
        placed.append(max(height, least))
    most = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], most)
        most = placed[i] - _LINE_HEIGHT
    return placed


def _draw_values(axes: Any, figure: Figure) -> None:
    """One row a name: its value, its interval, and the number in words."""
    names = list(figure.lines)
    if figure.has_log_y:
        axes.set_xscale("log")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    if figure.level is not None:
        axes.axvline(figure.level, color="#999999", linewidth=0.9, zorder=1)
    for row, name in enumerate(names):
        value = figure.lines[name][0][1]
        for low, high in figure.intervals.get(name, ()):
            axes.plot((low, high), (row, row), color=STYLES[1][0], linewidth=2.2, alpha=0.45)
        axes.plot([value], [row], color=STYLES[1][0], marker="o", linestyle="")
        axes.annotate(f"{value:,.3g}", (value, row), xytext=(0, 5), textcoords="offset points",
                      ha="center", fontsize=8, color=_INK)  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=figure.y_label)
    axes.set_ylim(len(names) - 0.4, -0.7)
    if not figure.has_log_y and min(points[0][1] for points in figure.lines.values()) >= 0:
        axes.set_xlim(left=0)
