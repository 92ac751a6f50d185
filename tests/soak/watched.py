"""What a process holds while it runs: memory, threads, descriptors, as /proc tells."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Held", "Life", "cpu_seconds", "growth"]


@dataclass(frozen=True)
class Held:
    """One look."""

    at_s: float
    memory_bytes: int
    threads: int
    descriptors: int


@dataclass
class Life:
    """One process from its start to its end."""

    pid: int
    looks: list[Held] = field(default_factory=list)

    def look(self) -> None:
        """Nothing is noted of a process that is gone."""
        with suppress(OSError, KeyError, ValueError):
            status = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            )
            self.looks.append(
                Held(
                    time.monotonic(),
                    1024 * int(status["VmRSS"].split()[0]),
                    int(status["Threads"]),
                    len(list(Path(f"/proc/{self.pid}/fd").iterdir())),
                )
            )


def growth(life: Life) -> dict[str, tuple[float, float]]:
    """Medians of the third and of the last quarter of a life: the first half is its warm-up."""
    looks = life.looks
    third, last = looks[len(looks) // 2 : 3 * len(looks) // 4], looks[3 * len(looks) // 4 :]
    return {
        name: (
            statistics.median(getattr(look, name) for look in third),
            statistics.median(getattr(look, name) for look in last),
        )
        for name in ("memory_bytes", "threads", "descriptors")
    }


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have worked so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
