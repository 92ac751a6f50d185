"""A program that counts its own threads: before an answer, in its passes, and once the engine is idle."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdn.clock import SystemClock
from kdn.core import Planned, Prompt, Request, RetainedKV, Role, Sampling, Segment
from kdn.engine import Engine, EngineLimits, plain
from kdn.machine.threads import give_up_workers
from kdn.model.attention import AttentionSlice, BoundAttention, TorchAttention
from tests.engine.runs import load_tiny, some_tokens
from tests.serve.running import wait_for

THREADS = 3


def num_threads() -> int:
    """Threads of this process as the system counts them, with those of libraries."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


class Counting(TorchAttention):
    """Attention that notes how many threads there are when a pass begins."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        self.seen.append(num_threads())
        return super().bind(slices, cos, sin)


class Cold:
    """Computes every prompt whole, and retains nothing."""

    def cached_tokens(self, request: Request) -> int:
        return 0

    def plan(self, request: Request) -> Planned:
        return plain(request)

    def retain(self, request: Request, kept: RetainedKV) -> None:
        return


def main(folder: Path) -> None:
    """Print the three counts as JSON."""
    torch.set_num_threads(THREADS)
    model = load_tiny(folder, folder)
    attention = Counting()
    engine = Engine(model, attention, Cold(), EngineLimits(kv_bytes=1 << 26), SystemClock())
    give_up_workers()  # those of this thread, which loaded the model
    before = num_threads()
    prompt = Prompt((Segment(Role.QUESTION, some_tokens(400, 250)),))
    for _ in engine.submit(Request("one", prompt, Sampling(max_tokens=4, ignore_eos=True))):
        pass
    wait_for(lambda: num_threads() <= before)
    after = num_threads()
    engine.close()
    sys.stdout.write(json.dumps({"before": before, "at_work": max(attention.seen), "after": after}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
