"""A campaign's outcome as a table and as plain values, and whether it is what is promised."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from kdn.core import quantile
from tests.soak.campaign import GRACE_S, Outcome

__all__ = ["as_json", "faults_found", "table"]

MEMORY_SLACK = 1.10
"""What the last quarter of a life may hold more than the third one, memory that is freed late included."""
MEMORY_SLACK_BYTES = 24 << 20
DESCRIPTORS_SLACK = 120
"""Connections come and go: a flood may fall into one quarter only."""


def _percentile(values: Sequence[float], share: float) -> float:
    """0 of none."""
    return quantile(values, share) if values else 0.0


def faults_found(outcome: Outcome, *, light_p99_s: float, recovery_s: float) -> list[str]:
    """Everything that must not be; empty for a campaign that held."""
    seen, found = outcome.traffic, []

    def must(holds: bool, what: str) -> None:
        if not holds:
            found.append(what)

    must(not seen["wrong"], f"wrong answers: {seen['wrong'][:3]}")
    must(not seen["failed"], f"requests that failed: {seen['failed'][:3]}")
    must(not outcome.lost, f"acknowledged entries lost: {outcome.lost}")
    must(not outcome.corrupt, f"damage that the plan did not do: {outcome.corrupt[:3]}")
    must(not outcome.unexpected_ends, f"the server ended by itself: {outcome.unexpected_ends[:1]}")
    must(not outcome.tracebacks, f"tracebacks in the log: {outcome.tracebacks[:3]}")
    must(not outcome.unexplained_cuts, f"connections cut by nobody: {outcome.unexplained_cuts[:5]}")
    must(outcome.stop_code == 0, f"SIGTERM ended with code {outcome.stop_code}")
    must(outcome.stop_s < GRACE_S + 2, f"SIGTERM took {outcome.stop_s:.1f} s")
    worst = max(outcome.recoveries_cpu_s, default=0.0)
    must(worst < recovery_s, f"recovery took {worst:.1f} s of processor time")
    p99 = _percentile(seen["light_in_flood_s"], 0.99)
    must(p99 < light_p99_s, f"P99 of light requests in floods is {p99:.1f} s")
    before, after = outcome.held["memory_bytes"]
    most = max(before * MEMORY_SLACK, before + MEMORY_SLACK_BYTES)
    must(after <= most, f"memory grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB")
    before, after = outcome.held["threads"]
    must(after <= before + 4, f"threads grew from {before:.0f} to {after:.0f}")
    before, after = outcome.held["descriptors"]
    must(after <= before + DESCRIPTORS_SLACK, f"descriptors grew from {before} to {after}")
    return found


def table(outcome: Outcome) -> str:
    """Markdown, as docs/reliability.md shows it."""
    seen = outcome.traffic
    met = outcome.met
    rows: list[tuple[str, object]] = [
        ("fault events of the plan", outcome.events),
        *((f"... {name}", count) for name, count in sorted(outcome.struck.items())),
        ("calls and connections that met a fault", met.total()),
        ("requests", sum(seen["sent"].values())),
        *((f"... {kind}", count) for kind, count in sorted(seen["sent"].items())),
        ("most connections at one time", seen["most_connections"]),
        ("answers compared, and equal to the bit", sum(_answers(seen["right"]).values())),
        ("answers that differ", len(seen["wrong"])),
        ("answered 429, 503, 507 or with a tier's error", sum(seen["busy"].values())),
        ("other failures", len(seen["failed"])),
        ("cut by a kill of the server", sum(seen["cut"].values()) - len(outcome.unexplained_cuts)),
        ("cut otherwise", len(outcome.unexplained_cuts)),
        ("streams that clients gave up", seen["left"]),
        ("entries acknowledged and pinned", len(seen["stored"])),
        ("... of them lost", len(outcome.lost)),
        ("blocks verified at the end", outcome.verified_blocks),
        ("... damaged, and not by the plan", len(outcome.corrupt)),
        ("ends of the server by itself", len(outcome.unexpected_ends)),
        ("starts that a failing disk refused", outcome.refused_starts),
        ("kinds of tracebacks in its log", len(outcome.tracebacks)),
        ("kill -9 to the next answer, median", _seconds(outcome.recoveries_s, 0.5)),
        ("kill -9 to the next answer, worst", _seconds(outcome.recoveries_s, 1.0)),
        ("... of which the server worked, worst", _seconds(outcome.recoveries_cpu_s, 1.0)),
        ("light requests, P50 and P99", _both(seen["light_s"])),
        ("light requests in floods, P50 and P99", _both(seen["light_in_flood_s"])),
        ("SIGTERM to the end, grace 5 s", f"{outcome.stop_s:.1f} s"),
        *_held(outcome),
    ]
    return "\n".join(["| what | count |", "|---|---:|", *(f"| {a} | {b} |" for a, b in rows)])


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All numbers, without the many single times."""
    shown = dict(vars(outcome))
    seen = {name: value for name, value in outcome.traffic.items() if not name.endswith("_s")}
    for name in ("light_s", "light_in_flood_s"):
        times = outcome.traffic[name]
        seen[f"{name[:-2]}_p50_s"] = statistics.median(times) if times else None
        seen[f"{name[:-2]}_p99_s"] = quantile(times, 0.99) if times else None
    return {**shown, "traffic": seen, "events": outcome.events}


def _answers(right: dict[str, int]) -> dict[str, int]:
    """Without what is only looked at."""
    return {kind: count for kind, count in right.items() if kind != "look"}


def _seconds(values: Sequence[float], share: float) -> str:
    return f"{_percentile(values, share):.1f} s"


def _both(values: Sequence[float]) -> str:
    return f"{_percentile(values, 0.5):.2f} and {_percentile(values, 0.99):.2f} s"


def _held(outcome: Outcome) -> list[tuple[str, object]]:
    (m0, m1), (t0, t1), (d0, d1) = (
        outcome.held[name] for name in ("memory_bytes", "threads", "descriptors")
    )
    return [
        (
            "memory in the third and last quarter of the longest life",
            f"{m0 / 1e6:.0f}, {m1 / 1e6:.0f} MB",
        ),
        ("threads", f"{t0:.0f}, {t1:.0f}"),
        ("descriptors", f"{d0:.0f}, {d1:.0f}"),
    ]
