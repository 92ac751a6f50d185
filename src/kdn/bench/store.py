"""How soon does stored KV answer: from every tier, against computing it, and against the machine?

A hit's prefix is random KV put straight into one tier and nowhere else; its 32 new tokens are
computed.  Every tier is met in every round.  Disk reads are cold: the system's cache was told to
forget the files.  Redis and the node run beside us, over loopback.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kdn.bench.contestants import Kdn
from kdn.bench.far import Hits, opened_with_tiers
from kdn.bench.loading import DeviceReads, overlap_excess
from kdn.bench.measure import Samples, interleave, median, ratio
from kdn.bench.result import BenchOptions, Figure, Result, Row
from kdn.bench.store_rivals import RIVALS, rival_hits
from kdn.errors import KdnError
from kdn.machine import describe_machine

__all__ = ["FULL", "QUICK", "Scale", "run"]

RECOMPUTE = "recompute"
LINKS_MB_S = (10, 30, 100, 300, 1000, 3000)
RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    pairs: dict[int, int]
    """Interleaved rounds by prompt length."""
    miss_pairs: int
    device_blocks: int
    device_pairs: int
    overlap_tokens: int
    overlap_pairs: int
    rival_tokens: int | None
    rival_pairs: int = 5


FULL = Scale({1024: 5, 2048: 5, 4096: 5, 7500: 5}, 15, 40, 7, 2048, 3, 2048)
QUICK = Scale({1024: 1}, 2, 8, 2, 512, 1, None)


@dataclass
class _Findings:
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "hit_speedup_memory",
                "hit_speedup_disk",
                "hit_speedup_redis",
                "hit_speedup_peer",
                "disk_share",
                "verify_overhead",
                "overlap_excess",
                "miss_cost",
                "hit_speedup_example",
                "hit_speedup_lmcache",
            )
        )
    )
    notes: list[str] = field(default_factory=list)
    hits: dict[int, Samples] = field(default_factory=dict)


def run(options: BenchOptions) -> Result:
    """Measure at the usual scale; `quick` leaves out the rivals and the longer prompts."""
    import torch

    torch.set_num_threads(options.threads)
    scale, found = QUICK if options.quick else FULL, _Findings()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdn-bench-")))
        options.say("starting kdn, Redis and a node")
        service, absent = opened_with_tiers(options, scratch, stack)
        found.notes += [f"{name} is absent: {why}" for name, why in absent.items()]
        hits = Hits(service, options.seed, scratch / "store")
        ours = Kdn(service.engine, options.clock, service.store.flush)
        for length, pairs in scale.pairs.items():
            _tiers(options, hits, ours, length, options.pairs or pairs, found)
        _misses(options, hits, ours, scale, found)
        _break_even(hits.token_bytes, found)
        _overlap(options, hits, scale, found)
        _device(options, hits, scale, scratch, found)
        if scale.rival_tokens is not None:
            _rivals(options, hits, ours, scale, scratch, found)
    if options.quick:
        found.notes.append("--quick leaves out the rivals and prompts over 1024 tokens")
    return Result(
        bench="store",
        model=options.model,
        machine=describe_machine(),
        config=options.describe(),
        rows=found.rows,
        summary=found.summary,
        notes=tuple(found.notes),
        figures=(_figure(found.hits),),
    )


def _tiers(
    options: BenchOptions, hits: Hits, ours: Kdn, length: int, pairs: int, found: _Findings
) -> None:
    """A hit from each tier beside a cold prompt, in the same rounds."""
    options.say(f"hits of {length} tokens from {', '.join(hits.tiers)}")
    sides: dict[str, Callable[[int], float]] = {
        RECOMPUTE: lambda number: ours.first_token_s(hits.prompt("cold", length, number))
    }
    for tier in hits.tiers:
        sides[tier] = partial(hits.hit_s, ours, tier, length)
    interleave(sides, 1, first=-1, rest_s=0.1)
    samples = interleave(sides, pairs, rest_s=0.1)
    found.hits[length] = samples
    for side in sides:
        speedup = ratio(samples, side, RECOMPUTE) if side != RECOMPUTE else None
        found.rows.append(
            {
                "measure": "first token, ms",
                "side": side,
                "tokens": length,
                "value": 1000 * (median(samples, side) or 0.0),
                "speedup": speedup.median if speedup else None,
                "spread": f"{speedup.low:.2f}-{speedup.high:.2f}" if speedup else None,
            }
        )
        if speedup and f"hit_speedup_{side}" in found.summary:
            found.summary[f"hit_speedup_{side}"] = speedup.median


def _misses(options: BenchOptions, hits: Hits, ours: Kdn, scale: Scale, found: _Findings) -> None:
    """What asking costs when nothing is there: the same prompts with and without the store."""
    options.say("what a miss costs")
    length = min(scale.pairs)
    sides: dict[str, Callable[[int], float]] = {
        "asked in vain": lambda n: hits.miss_s(ours, hits.prompt("miss", length, n)),
        "not asked": lambda n: ours.first_token_s(hits.prompt("none", length, n)),
    }
    samples = interleave(sides, scale.miss_pairs, rest_s=0.05)
    cost = ratio(samples, "not asked", "asked in vain")
    assert cost is not None
    found.summary["miss_cost"] = cost.median - 1
    found.rows.append(
        {
            "measure": "a miss: time over a prompt that was not looked up",
            "tokens": length,
            "value": cost.median - 1,
            "spread": f"{cost.low - 1:.3f}-{cost.high - 1:.3f}",
        }
    )


def _break_even(token_bytes: int, found: _Findings) -> None:
    """From what slowest link a prefix is worth loading, by its length, from the measured prefill."""
    for length, samples in found.hits.items():
        prefill_s = median(samples, RECOMPUTE) or 0.0
        hit_s = median(samples, "memory") or 0.0
        size_mb = length * token_bytes / 1e6
        row: Row = {
            "measure": "break-even link, MB/s",
            "tokens": length,
            "value": size_mb / prefill_s,
        }
        for link in LINKS_MB_S:
            row[f"{link} MB/s"] = prefill_s / max(size_mb / link, hit_s)
        found.rows.append(row)


def _overlap(options: BenchOptions, hits: Hits, scale: Scale, found: _Findings) -> None:
    """A hit whose load takes half, as long as, and twice as long as its computing."""
    worst = 0.0
    for wanted in RATIOS:
        options.say(f"overlap, loading at {wanted} of computing")
        seen = overlap_excess(options, hits, scale.overlap_tokens, wanted, scale.overlap_pairs)
        worst = max(worst, seen.excess)
        found.rows.append(
            {
                "measure": "overlap: time over the longer of load and compute",
                "side": f"load/compute {wanted}",
                "tokens": scale.overlap_tokens,
                "value": seen.excess,
                "spread": f"compute {seen.compute_s:.2f} s, load {seen.load_s:.2f} s,"
                f" both {seen.both_s:.2f} s",
            }
        )
    found.summary["overlap_excess"] = worst


def _device(
    options: BenchOptions, hits: Hits, scale: Scale, scratch: Path, found: _Findings
) -> None:
    """Blocks off the disk, verified and not, beside raw reads of as many bytes, all O_DIRECT."""
    options.say("the disk tier beside the device")
    reads = DeviceReads(hits, scratch / "device", scale.device_blocks, options.clock)
    try:
        sides: dict[str, Callable[[int], float]] = {
            "raw device": reads.raw_s,
            "disk tier": reads.verified_s,
            "disk tier, not verified": reads.unverified_s,
        }
        interleave(sides, 1, first=-1, rest_s=0.05)
        samples = interleave(sides, scale.device_pairs, rest_s=0.05)
    finally:
        reads.close()
    share = ratio(samples, "disk tier", "raw device")
    cost = ratio(samples, "disk tier, not verified", "disk tier")
    assert share is not None
    assert cost is not None
    found.summary["disk_share"] = share.median
    found.summary["verify_overhead"] = cost.median - 1
    for side in sides:
        found.rows.append(
            {
                "measure": "read, MB/s, O_DIRECT" if reads.direct else "read, MB/s",
                "side": side,
                "value": reads.size_bytes / 1e6 / (median(samples, side) or 1.0),
            }
        )
    if not reads.direct:
        found.notes.append("the file system has no O_DIRECT: both sides read through its cache")


def _rivals(
    options: BenchOptions, hits: Hits, ours: Kdn, scale: Scale, scratch: Path, found: _Findings
) -> None:
    """A hit over HTTP from our node beside vLLM with its connectors, one rival at a time."""
    assert scale.rival_tokens is not None
    for name, key in RIVALS.items():
        options.say(f"{name}, hits of {scale.rival_tokens} tokens")
        try:
            samples = rival_hits(
                options, name, hits, ours, scale.rival_tokens, scale.rival_pairs, scratch
            )
        except (OSError, RuntimeError, KdnError) as error:
            found.notes.append(f"{name} is absent: {str(error)[:300]}")
            continue
        speedup = ratio(samples, "peer", name)
        assert speedup is not None
        found.summary[key] = speedup.median
        found.rows.append(
            {
                "measure": "hit over HTTP, ms",
                "side": name,
                "tokens": scale.rival_tokens,
                "value": 1000 * (median(samples, name) or 0.0),
                "speedup": speedup.median,
                "spread": f"{speedup.low:.2f}-{speedup.high:.2f}; ours"
                f" {1000 * (median(samples, 'peer') or 0.0):.0f} ms",
            }
        )


def _figure(hits: dict[int, Samples]) -> Figure:
    sides = dict.fromkeys(side for samples in hits.values() for side in samples)
    lines = {
        side: [(float(n), median(samples, side) or 0.0) for n, samples in hits.items()]
        for side in sides
    }
    return Figure("Time to first token, by where the prefix is", "tokens", "seconds", lines)
