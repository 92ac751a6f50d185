"""The store against power cuts, flipped bits, crafted headers, neighbours and faults, many times over.

Prints a Markdown table of what was tried and what came of it; docs/reliability.md shows one.  Exit code
1 when anything was torn, lost, wrong or unnoticed.

python scripts/soak_store.py --minutes 10
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.store.damage import block_of, crafted, every_bit, some_bits, survives, undetected
from tests.store.faults import Simulation
from tests.store.test_crashes import survive_all
from tests.store.test_crowd import run_crowd

from kdn.store import CODECS

MULTI_BIT_FLIPS = 30_000
CRAFTED = 30_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for power cuts and neighbours")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| what | tried | torn, lost, wrong or unnoticed |\n|---|---:|---:|", flush=True)
    missed = sum(flip(name) for name in CODECS)
    craft(options.seed)
    crowd(min(60.0, 15 * options.minutes))
    cut(options.seed, 30 * options.minutes)
    hurt(options.seed, 15 * options.minutes)
    sys.exit(1 if missed else 0)


def flip(codec: str) -> int:
    encoded = block_of(codec)
    flips = chain(every_bit(encoded), some_bits(encoded, MULTI_BIT_FLIPS))
    count, missed = undetected(encoded, flips)
    row(
        f"bits flipped in a block of codec `{codec}`: each alone, then 1 to 8 at once",
        count,
        missed,
    )
    return missed


def craft(seed: int) -> None:
    """Raises AssertionError, or whatever else a parser lets out."""
    rng, refused = random.Random(seed), 0
    blocks = [block_of(name) for name in CODECS]
    for _ in range(CRAFTED):
        encoded = rng.choice(blocks)
        refused += not survives(encoded, crafted(encoded, rng))
    row(f"crafted headers under a checksum that fits ({refused:,} refused)", CRAFTED, 0)


def crowd(seconds: float) -> None:
    with work_folder() as folder:
        written, read = run_crowd(folder / "kv", seconds)
    row(f"blocks read while two processes wrote {written:,} ({seconds:.0f} s)", read, 0)


def cut(seed: int, seconds: float) -> None:
    """Histories of random puts, drops, evictions and quarantines, cut after every step."""
    stop, steps, states, histories = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < stop:
        with work_folder() as folder:
            more = survive_all(folder, seed=seed + histories, steps=12, most=24)
        steps, states, histories = steps + more[0], states + more[1], histories + 1
    row(f"states after a power cut ({histories} histories, {steps:,} steps)", states, 0)


def hurt(seed: int, seconds: float) -> None:
    """Random work under seeded faults of device, network, clock and process, held to a dict."""
    stop, faults, reads, runs = time.monotonic() + seconds, Counter[str](), 0, 0
    while time.monotonic() < stop:
        with work_folder() as folder:
            simulation = Simulation(folder / "kv", seed + runs)
            simulation.run(steps=60)
        faults, reads, runs = faults + simulation.counts, reads + simulation.reads, runs + 1
    row(f"blocks read in {runs:,} simulated lives under the faults below", reads, 0)
    for what, count in faults.most_common():
        row(f"... {what}", count, 0)


@contextmanager
def work_folder() -> Iterator[Path]:
    """In memory where there is such a thing."""
    memory = Path("/dev/shm")  # noqa: S108  the folder made in it is private
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def row(what: str, tried: int, wrong: int) -> None:
    print(f"| {what} | {tried:,} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
