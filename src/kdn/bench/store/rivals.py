"""vLLM with a store after it, beside ours: the same prefix, out of both engines' own caches."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from kdn.bench.common.measure import Samples, interleave
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import KdnContestant, RivalProcess
from kdn.bench.engine.lineup import weights
from kdn.bench.store.far import NEW_TOKENS, Hits
from kdn.errors import EngineFailed

__all__ = ["COLD", "RIVALS", "rival_hits"]

COLD = "cold"
"""The rival with a prompt it has never seen: says whether its hit was one."""

RIVALS = {"vllm + ExampleConnector": "hit_speedup_example", "vllm + LMCache": "hit_speedup_lmcache"}
_CONNECTOR = {"vllm + ExampleConnector": "example", "vllm + LMCache": "lmcache"}
_SCRIPT = Path(__file__).parents[4] / "scripts" / "rivals" / "vllm_stored.py"


def rival_hits(
    options: BenchOptions,
    name: str,
    hits: Hits,
    ours: KdnContestant,
    length: int,
    pairs: int,
    scratch: Path,
) -> Samples:
    """Seconds to first token of hits from our node and from the rival, in the same rounds.

    Raises EngineFailed, saying why, when the rival cannot run here.
    """
    python = options.rivals / "bin" / "python"
    if not python.exists():
        raise EngineFailed(f"{options.rivals.name} is not there; `make rivals` builds it")
    _, folder = weights(options, hits.shape.dtype)
    command: list[str | Path] = [
        python, _SCRIPT, "--model", folder, "--dtype", hits.shape.dtype,
        "--threads", str(options.threads),
        "--connector", _CONNECTOR[name], "--scratch", scratch / _CONNECTOR[name],
    ]  # fmt: skip
    rival = RivalProcess(command, scratch / f"{_CONNECTOR[name]}.log")
    try:
        sides: dict[str, Callable[[int], float]] = {
            "peer": lambda number: hits.hit_s(ours, "peer", length, 100 + number),
            name: lambda number: _hit_s(rival, hits, length, number),
            COLD: lambda number: rival.first_token_s(hits.prompt("rival-cold", length, number)),
        }
        interleave(sides, 1, first=-1)
        samples = interleave(sides, pairs)
    finally:
        rival.close()
    if statistics.median(samples[name]) >= statistics.median(samples[COLD]):
        raise EngineFailed(f"{name} was no sooner with a hit than without one: {samples}")
    return samples


def _hit_s(rival: RivalProcess, hits: Hits, length: int, number: int) -> float:
    prefix = hits.prompt("rival", length - NEW_TOKENS, number)
    seconds = rival.hit_s(prefix, hits.prompt("rival-rest", NEW_TOKENS, number))
    if seconds is None:
        raise EngineFailed("the rival declined a hit")
    return seconds
