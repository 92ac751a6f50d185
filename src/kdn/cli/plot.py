"""Lines over a shared axis, as a picture file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdn.errors import BadInput, MissingExtra

__all__ = ["draw_lines"]

Points = Sequence[tuple[float, float]]


def draw_lines(
    path: Path,
    title: str,
    axes_names: tuple[str, str],
    lines: Mapping[str, Points],
    *,
    log_x: bool = False,
) -> None:
    """Write `path` in the format its name ends in. Raises MissingExtra, or BadInput for the name."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a plot needs matplotlib: pip install 'kdn[plot]'") from error
    canvas = Figure(figsize=(7, 4), layout="constrained")
    axes = canvas.subplots()
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set(title=title, xlabel=axes_names[0], ylabel=axes_names[1])
    if log_x:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        canvas.savefig(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"--plot {path}: {error}") from error
