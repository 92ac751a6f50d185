"""A made-up table: eight levels from 100 to 4,000 kbit/s, quality by a formula."""

from __future__ import annotations

import numpy as np

from kdn.net.rtc.tables import LOSSES, RateTable

__all__ = ["made_table"]


def made_table(survives: bool = True, spare: float = 0.0, pictures: int = 50) -> RateTable:
    """SSIM 1 - 0.15 / sqrt(rate over the lowest) without loss, less 0.1 loss^1.5."""
    kbps = np.geomspace(100, 4000, 8)
    sizes = np.tile((kbps * 1000 / 8 / 25).astype(np.int64), (pictures, 1))
    clean = 1.0 - 0.15 * (100 / kbps) ** 0.5
    ssim = clean[:, None] - 0.1 * np.array(LOSSES) ** 1.5
    table = np.tile(ssim[None], (pictures, 1, 1))
    return RateTable(
        "made", "made", 25.0, sizes, 4 * sizes, table, 40 * table, survives, spare, 0.5
    )
