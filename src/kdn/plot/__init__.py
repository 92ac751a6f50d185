"""Pictures of figures, all in one style.

Trades in `Figure`: named lines over a shared axis, with their intervals. Benchmarks, the command line
and `net` import it; it imports errors only, and matplotlib when something is drawn. Start reading at
`figure.py`; `draw.py` has the style.
"""

from kdn.plot.draw import STYLES, canvas, draw, save
from kdn.plot.figure import Figure, Interval, Points

__all__ = ["STYLES", "Figure", "Interval", "Points", "canvas", "draw", "save"]
