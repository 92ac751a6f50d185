"""Writers and a reader on one folder, each a process: run as `python crowd.py ROLE FOLDER SEED SECONDS`.

Each says `ready` when it is, and begins with the first line that it is told.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from kdn.clock import SystemClock
from kdn.core import BlockId
from kdn.errors import CorruptBlock
from kdn.store import CODECS, Block, DiskTier, Store
from kdn.trace import NoTrace
from tests.store.helpers import SHAPE, block_id, make_block

NAMES = [block_id(range(number, number + 16 + number % 48)) for number in range(60)]
AT_LEAST = 20
"""So often everybody does what it is for, however slow the machine is."""
CAP_BYTES = 40 * 16384
LOSSLESS = [codec for codec in CODECS.values() if codec.lossless]


def wanted(name: BlockId) -> Block:
    return make_block(name, SHAPE)


def write(store: Store, rng: random.Random) -> bool:
    """Put one, now and then drop one; True when something was put."""
    name = rng.choice(NAMES)
    if rng.random() < 0.1:
        store.drop(name.key)
        return False
    store.put(wanted(name), rng.choice(LOSSLESS))
    return True


def read(store: Store, rng: random.Random) -> bool:
    """Open one; True when it was there. Asserts that it is what was put, byte by byte."""
    name = rng.choice(NAMES)
    reader = store.open(name)
    if reader is None:
        return False
    with reader:
        try:
            layers = reader.layers(0, SHAPE.num_layers)
        except CorruptBlock:
            return False
        whole = all(bytes(a) == bytes(b) for a, b in zip(layers, wanted(name).layers, strict=True))
        assert whole, f"wrong bytes for {name.key}"
    return True


def main(role: str, folder: str, seed: str, seconds: str) -> None:
    """Writes how often it did what it is for, and how many damaged blocks it met."""
    act, rng, done = {"write": write, "read": read}[role], random.Random(int(seed)), 0
    tier = DiskTier(Path(folder), CAP_BYTES, SystemClock(), NoTrace())
    with Store([tier]) as store:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        stop = time.monotonic() + float(seconds)
        while time.monotonic() < stop or done < AT_LEAST:
            done += act(store, rng)
        sys.stdout.write(f"{done} {store.stat().corrupt}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
