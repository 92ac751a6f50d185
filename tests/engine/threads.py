"""A program with two engines, the first of which gives way to others: with how many threads they compute."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from kdn.clock import SystemClock
from kdn.core import Prompt, Request, Role, Sampling, Segment
from kdn.engine import Engine, EngineLimits
from kdn.machine.threads import FreeCores
from kdn.model.attention import AttentionSlice, BoundAttention, TorchAttention
from tests.engine.runs import load_tiny, some_tokens
from tests.engine.workers import Cold

THREADS = 2


class Counting(TorchAttention):
    """Attention that notes with how many threads each pass computes."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        self.seen.append(torch.get_num_threads())
        return super().bind(slices, cos, sin)


def free_cores(running: int) -> FreeCores:
    """What is free of two processors beside so many threads of other programs."""
    return FreeCores(THREADS, SystemClock(), cores=2, busy_s=lambda: None, running=lambda: running)


def main(folder: Path) -> None:
    """Print how many threads each engine and a thread that begins after the first one's passes has."""
    torch.set_num_threads(THREADS)
    model = load_tiny(folder, folder, "bfloat16")
    found = {}
    for name, running in (("beside a busy neighbour", 1), ("alone", 0)):
        attention = Counting()
        engine = Engine(
            model,
            attention,
            Cold(),
            EngineLimits(kv_bytes=1 << 26),
            SystemClock(),
            cores=free_cores(running),
        )
        attention.seen.clear()
        prompt = Prompt((Segment(Role.QUESTION, some_tokens(40, 250)),))
        for _ in engine.submit(Request("one", prompt, Sampling(max_tokens=4, ignore_eos=True))):
            pass
        with ThreadPoolExecutor(1) as fresh:
            found[f"a thread after {name}"] = fresh.submit(torch.get_num_threads).result()
        engine.close()
        found[name] = attention.seen[-1]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
