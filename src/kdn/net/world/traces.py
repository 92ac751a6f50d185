"""What a link could carry, second by second: recorded, or made up.

A `RateTrace` repeats after its end.  Readers accept plain or gzipped files and refuse what they
cannot read with the line at fault.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.world.records import MS, SECOND

__all__ = ["RateTrace", "constant", "read_link", "read_mahimahi", "read_throughput"]

_LEAST_BPS = 10_000.0
_YEAR_S = 366 * 86_400.0
_LATEST_S = 2.2e9  # seconds may count from 1970


@dataclass(frozen=True)
class RateTrace:
    """From `times_ns[i]` on the link carries `bits_per_s[i]`; after `period_ns` it all repeats.

    With `opportunities` the times are moments at which one packet may leave, and the rates are
    not looked at.
    """

    times_ns: NDArray[np.int64]
    bits_per_s: NDArray[np.float64]
    period_ns: int
    opportunities: bool = False

    @property
    def mean_bps(self) -> float:
        """Bits per second over one period (1500-byte packets where there are opportunities)."""
        if self.opportunities:
            return len(self.times_ns) * 1500 * 8 * SECOND / self.period_ns
        ends = np.append(self.times_ns[1:], self.period_ns)
        return float(np.sum(self.bits_per_s * (ends - self.times_ns)) / self.period_ns)


def constant(bits_per_s: float) -> RateTrace:
    """A link that never changes."""
    return RateTrace(np.zeros(1, np.int64), np.array([bits_per_s]), SECOND)


def read_link(path: Path, scale: float = 1.0) -> RateTrace:
    """A recorded link of either kind: one number a line is mahimahi, two are seconds and Mbit/s.

    `scale` multiplies rates; a mahimahi file has none to multiply. Raises BadInput as the readers do.
    """
    first = next((line for line in _lines(path) if line.strip()), "")
    if len(first.replace(",", " ").split()) == 1:
        if scale != 1.0:
            raise BadInput(
                f"{path} lists opportunities, which have no rate to scale; scale must be 1"
            )
        return read_mahimahi(path)
    return read_throughput(path, scale)


def read_mahimahi(path: Path) -> RateTrace:
    """A mahimahi file: each line the millisecond of an opportunity to send 1500 bytes.

    Raises BadInput for a missing file, a line that is no number, or times that go back.
    """
    ms = _numbers(path, 1, _YEAR_S * 1e3)[:, 0]
    if ms[0] < 0 or np.any(np.diff(ms) < 0):
        raise BadInput(f"{path}: times of a mahimahi trace start at 0 or later and never go back")
    times = (ms * MS).astype(np.int64)
    period = int(times[-1]) + MS
    return RateTrace(times, np.zeros(len(times)), period, opportunities=True)


def read_throughput(path: Path, scale: float = 1.0) -> RateTrace:
    """Lines of `seconds Mbit/s`; `scale` multiplies the rates.

    Rates below 10 kbit/s count as 10 kbit/s: a link that is down for good would stop the world.
    Raises BadInput as `read_mahimahi` does.
    """
    rows = _numbers(path, 2, _LATEST_S)
    times = ((rows[:, 0] - rows[0, 0]) * SECOND).astype(np.int64)
    if len(times) < 2 or np.any(np.diff(times) <= 0):
        raise BadInput(f"{path}: a throughput trace needs two or more rising times")
    if np.any(rows[:, 1] < 0):
        raise BadInput(f"{path}: a throughput trace has no rate below 0 Mbit/s")
    rates = np.maximum(rows[:, 1] * 1e6 * scale, _LEAST_BPS)
    return RateTrace(times, rates, int(times[-1] + np.median(np.diff(times))))


def _numbers(path: Path, columns: int, latest: float) -> NDArray[np.float64]:
    """The first `columns` numbers of every line, [lines, columns]; `latest` bounds the first, a time."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.replace(",", " ").split()[:columns]]
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {line.strip()!r} is not a number") from error
        if len(row) < columns:
            raise BadInput(f"{path}, line {number}: wanted {columns} numbers, found {len(row)}")
        if not np.all(np.isfinite(row)):
            raise BadInput(f"{path}, line {number}: {line.strip()!r} is not a finite number")
        if abs(row[0]) > latest:
            raise BadInput(f"{path}, line {number}: {line.strip()!r} is too late a time")
        rows.append(row)
    if not rows:
        raise BadInput(f"{path} holds no line; a trace needs at least one")
    return np.array(rows)


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"cannot read {path} as a trace: {error}") from error
