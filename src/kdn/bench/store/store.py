"""How soon does stored KV answer: from every tier, against computing it, and against the machine?

A hit's prefix is random KV put straight into one tier and nowhere else; its 32 new tokens are
computed.  Every tier is met in every round.  Disk reads are cold: the system's cache was told to
forget the files.  Redis and the node run beside us, over loopback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdn.bench.common.findings import Findings, Part, go_on
from kdn.bench.common.lines import intervals_of, lines_of
from kdn.bench.common.measure import interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.contestants import KdnContestant
from kdn.bench.store.far import Hits, opened_with_tiers
from kdn.bench.store.loading import DeviceReads, overlap_excess
from kdn.bench.store.rivals import COLD, RIVALS, rival_hits
from kdn.errors import EngineFailed
from kdn.plot import Figure

__all__ = ["FULL", "QUICK", "StoreScale", "run"]

RECOMPUTE = "recompute"
LINKS_MB_S = (10, 30, 100, 300, 1000, 3000)
RATIOS = (0.5, 1.0, 2.0)
TTFT = "first token, ms"
HIT_SHARES = {"always there": 1.0, "there every second time": 0.5, "there one time in ten": 0.1}


@dataclass(frozen=True)
class StoreScale:
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


FULL = StoreScale({1024: 5, 2048: 5, 4096: 5, 7500: 5}, 15, 40, 7, 2048, 5, 2048)
QUICK = StoreScale({1024: 1}, 2, 8, 2, 512, 1, None)


SUMMARY = (
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


def run(options: BenchOptions) -> Result:
    """Measure at the usual scale; `quick` leaves out the rivals and the longer prompts.

    With `rows` every part that is done is kept in that file, and another run goes on from there.
    """
    import torch

    torch.set_num_threads(options.threads)
    config = options.describe() | {"dtype": options.machine_dtype()}
    found = Findings.open(options.rows, config, dict.fromkeys(SUMMARY))
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        options.say("starting kdn, Redis and a node")
        service, absent = opened_with_tiers(options, scratch, stack)
        hits = Hits(service, options.seed, scratch / "store")
        ours = KdnContestant(service.engine, options.clock, service.store.flush)
        go_on(found, _parts(options, hits, ours, scratch, found), options.rows)
    notes = [f"{name} is absent: {why}" for name, why in absent.items()]
    if options.quick:
        notes.append("--quick leaves out the rivals and prompts over 1024 tokens")
    rows = [*found.rows, *_break_even(hits.token_bytes, found)]
    return Result(
        bench="store",
        model=options.model,
        config=options.describe(),
        rows=rows,
        summary=found.summary,
        notes=(*notes, *found.notes),
        figures=figures_of(rows),
        dtype=hits.shape.dtype,
    )


def _parts(
    options: BenchOptions, hits: Hits, ours: KdnContestant, scratch: Path, found: Findings
) -> list[Part]:
    """What is measured, in order: what matters most first."""
    scale = QUICK if options.quick else FULL
    rivals = RIVALS if scale.rival_tokens is not None else {}
    return [
        ("misses", partial(_misses, options, hits, ours, scale, found)),
        ("overlap", partial(_overlap, options, hits, scale, found)),
        ("device", partial(_device, options, hits, scale, scratch, found)),
        *(
            (name, partial(_rival, options, name, hits, ours, scale, scratch, found))
            for name in rivals
        ),
        *(
            (
                f"hits of {length} tokens",
                partial(_tiers, options, hits, ours, length, options.pairs or pairs, found),
            )
            for length, pairs in scale.pairs.items()
        ),
    ]


def _tiers(
    options: BenchOptions, hits: Hits, ours: KdnContestant, length: int, pairs: int, found: Findings
) -> None:
    """A hit from each tier beside a cold prompt, in the same rounds."""
    options.say(f"hits of {length} tokens from {', '.join(hits.tiers)}")
    sides: dict[str, Callable[[int], float]] = {
        RECOMPUTE: lambda number: ours.first_token_s(hits.prompt("cold", length, number))
    }
    for tier in hits.tiers:
        sides[tier] = partial(hits.hit_s, ours, tier, length)
    interleave(sides, 1, first=-1, rest_s=0.1)  # what is slow once, or at a new length
    samples = interleave(sides, pairs, rest_s=0.1)
    found.samples[length] = samples
    for side in sides:
        speedup = ratio(samples, side, RECOMPUTE) if side != RECOMPUTE else None
        found.rows.append(
            {
                "part": TTFT,
                "side": side,
                "tokens": length,
                "value": 1000 * (median(samples, side) or 0.0),
                "speedup": speedup.median if speedup else None,
                "spread": f"{speedup.low:.2f}-{speedup.high:.2f}" if speedup else None,
            }
        )
        if speedup and f"hit_speedup_{side}" in found.summary:
            found.summary[f"hit_speedup_{side}"] = speedup.median


def _misses(
    options: BenchOptions, hits: Hits, ours: KdnContestant, scale: StoreScale, found: Findings
) -> None:
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
            "part": "a miss: time over a prompt that was not looked up",
            "tokens": length,
            "value": cost.median - 1,
            "spread": f"{cost.low - 1:.3f}-{cost.high - 1:.3f}",
        }
    )


def _break_even(token_bytes: int, found: Findings) -> list[Row]:
    """From what slowest link a prefix is worth asking for, by its length and how often it is there.

    Asking costs what a miss costs when it is not; a hit is no sooner than out of memory.
    """
    rows: list[Row] = []
    for length, samples in found.samples.items():
        prefill_s = median(samples, RECOMPUTE) or 0.0
        hit_s = median(samples, "memory") or 0.0
        size_mb = length * token_bytes / 1e6
        row: Row = {"part": "break-even link, MB/s", "tokens": length}
        for told, share in HIT_SHARES.items():
            row[told] = _slowest_mb_s(size_mb, prefill_s, share, _miss_share(found))
        for link in LINKS_MB_S:
            row[f"speedup at {link} MB/s"] = prefill_s / max(size_mb / link, hit_s)
        rows.append(row)
    return rows


def _slowest_mb_s(size_mb: float, prefill_s: float, share: float, miss: float) -> float | None:
    """Where asking takes as long as computing immediately, on average; None: no link is quick enough.

    share * load + (1 - share) * (1 + miss) * prefill = prefill
    """
    load_s = prefill_s * (share - (1 - share) * miss) / share
    return size_mb / load_s if load_s > 0 else None


def _miss_share(found: Findings) -> float:
    return max(found.summary["miss_cost"] or 0.0, 0.0)


def _overlap(options: BenchOptions, hits: Hits, scale: StoreScale, found: Findings) -> None:
    """A hit whose load takes half, as long as, and twice as long as its computing."""
    worst = 0.0
    for wanted in RATIOS:
        options.say(f"overlap, loading at {wanted} of computing")
        seen = overlap_excess(options, hits, scale.overlap_tokens, wanted, scale.overlap_pairs)
        worst = max(worst, seen.excess)
        found.rows.append(
            {
                "part": "overlap: time over the longer of load and compute",
                "side": f"load/compute {wanted}",
                "tokens": scale.overlap_tokens,
                "value": seen.excess,
                "spread": f"{seen.low:.2f}-{seen.high:.2f}; compute {seen.compute_s:.2f} s,"
                f" load {seen.load_s:.2f} s, both {seen.both_s:.2f} s",
            }
        )
    found.summary["overlap_excess"] = worst


def _device(
    options: BenchOptions, hits: Hits, scale: StoreScale, scratch: Path, found: Findings
) -> None:
    """Blocks off the disk, verified and not, beside raw reads of as many bytes, all O_DIRECT."""
    options.say("the disk tier beside the device")
    reads = DeviceReads(hits, scratch / "device", scale.device_blocks, options.clock)
    try:
        sides: dict[str, Callable[[int], float]] = {
            "raw device": reads.raw_s,
            "disk tier": reads.verified_s,
            "disk tier, not verified": reads.unverified_s,
            "disk tier, by layers as a hit": reads.hit_s,
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
                "part": "read, MB/s, O_DIRECT" if reads.direct else "read, MB/s",
                "side": side,
                "value": reads.size_bytes / 1e6 / (median(samples, side) or 1.0),
            }
        )
    if not reads.direct:
        found.notes.append("the file system has no O_DIRECT: both sides read through its cache")


def _rival(
    options: BenchOptions,
    name: str,
    hits: Hits,
    ours: KdnContestant,
    scale: StoreScale,
    scratch: Path,
    found: Findings,
) -> None:
    """A hit over HTTP from our node beside vLLM with a connector, each out of its own store."""
    assert scale.rival_tokens is not None
    options.say(f"{name}, hits of {scale.rival_tokens} tokens")
    found.rows = [row for row in found.rows if row.get("side") != name]  # of an earlier run
    row: Row = {"part": "hit over HTTP, ms", "side": name, "tokens": scale.rival_tokens}
    try:
        samples = rival_hits(
            options, name, hits, ours, scale.rival_tokens, scale.rival_pairs, scratch
        )
    except (OSError, EngineFailed) as error:
        found.rows.append(row | {"spread": f"absent: {str(error)[:300]}"})
        raise
    speedup = ratio(samples, "peer", name)
    assert speedup is not None
    found.summary[RIVALS[name]] = speedup.median
    found.rows.append(
        row
        | {
            "value": 1000 * (median(samples, name) or 0.0),
            "speedup": speedup.median,
            "spread": f"{speedup.low:.2f}-{speedup.high:.2f}; ours"
            f" {1000 * (median(samples, 'peer') or 0.0):.0f} ms; theirs without a hit"
            f" {1000 * (median(samples, COLD) or 0.0):.0f} ms",
        }
    )


def figures_of(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Nothing is drawn of what was not measured."""
    first = [row for row in rows if row.get("part") == TTFT and row.get("speedup")]
    links = [row for row in rows if HIT_SHARES.keys() & row.keys()]
    curves = {
        told: [(float(str(row["tokens"])), float(str(row[told]))) for row in links if row.get(told)]
        for told in HIT_SHARES
    }
    if not first:
        return ()
    return (
        Figure(
            "Time to first token, by where the prefix is stored",
            "prompt tokens",
            "times sooner than a full prefill",
            lines_of(first, "side", "tokens", "speedup"),
            intervals_of(first, "side", "speedup"),
            level=1.0,
        ),
        Figure(
            "From what link on stored KV is sooner, by how often it is there",
            "prompt tokens",
            "MB/s",
            {told: points for told, points in curves.items() if points},
        ),
    )
