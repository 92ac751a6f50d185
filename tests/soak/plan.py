"""The plan of a campaign: which fault begins when and for how long. A seed gives the same plan again."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Fault", "draw_plan"]

RECOVERY_S = 8.0
"""After the server was killed nothing else kills it for so long."""


@dataclass(frozen=True, order=True)
class Fault:
    """One event. `where` is a tier's server, `disk`, `clock`, `process` or `files`."""

    at_s: float
    where: str
    how: str
    lasts_s: float = 0.0
    amount: int = 0
    """Of a clock the seconds it jumps by, of other faults what their sort needs."""

    @property
    def name(self) -> str:
        """As the table names it."""
        return f"{self.where}: {self.how}"


# where, how, weight, the least and most seconds that it lasts
_SORTS = (
    *(
        (where, how, 3.0, 0.3, 2.5)
        for where in ("redis", "s3", "node")
        for how in ("hangs", "drips", "cut", "endless answer", "refused")
    ),
    ("redis", "killed and started", 3.0, 0.2, 1.5),
    ("s3", "killed and started", 1.0, 0.2, 1.0),
    ("node", "killed and started", 1.0, 0.2, 1.0),
    ("disk", "ENOSPC while writing", 5.0, 0.3, 2.0),
    ("disk", "EIO while writing", 4.0, 0.3, 2.0),
    ("disk", "EIO while syncing", 4.0, 0.3, 2.0),
    ("disk", "EIO while reading", 4.0, 0.3, 2.0),
    ("disk", "short reads", 5.0, 0.3, 3.0),
    ("disk", "slow reads and writes", 4.0, 0.3, 2.0),
    ("clock", "jumps", 6.0, 0.5, 5.0),
    ("files", "a byte flipped", 5.0, 0.0, 0.0),
    ("files", "a block removed", 3.0, 0.0, 0.0),
    ("process", "a worker killed", 3.0, 0.0, 0.0),
)
_JUMPS_S = (-30 * 86_400 * 365, -86_400, -3600, 3600, 86_400, 30 * 86_400 * 365)


def draw_plan(seed: int, seconds: float, per_s: float, kills: int) -> list[Fault]:
    """Faults over `seconds`, `per_s` of them a second, in the order of their beginning.

    `kills` of the server fall into the first half, so that the second is one life whose memory can be judged.
    """
    rng = random.Random(seed)
    weights = [sort[2] for sort in _SORTS]
    plan = []
    for _ in range(int(seconds * per_s)):
        where, how, _, least, most = rng.choices(_SORTS, weights)[0]
        amount = rng.choice(_JUMPS_S) if where == "clock" else rng.randrange(1 << 30)
        plan.append(Fault(rng.uniform(0, seconds), where, how, rng.uniform(least, most), amount))
    gap_s = max(RECOVERY_S, seconds / 2 / max(kills, 1))
    plan += [
        Fault(RECOVERY_S / 2 + number * gap_s + rng.uniform(0, 2), "process", "server killed")
        for number in range(kills)
    ]
    return sorted(plan)
