"""Captures that others recorded, as logs: real ACK latencies through real queues.

One queue per flow, so they test prediction only.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.world.records import CE, ECT0, ECT1, LOG, SECOND

__all__ = ["CAPTURES", "read_capture"]

CAPTURES = ("prague_dualpi2_wifi", "prague_fq_codel_wifi", "up_dualpi2_l", "up_dualpi2_c")
_PROBE_BYTES = 172
_LEAST_SHARE = 0.25
"""Rows faster than this share of the median answer packets of the capturing side itself."""


def read_capture(path: Path) -> NDArray[Any]:
    """A capture as LOG rows in order of ACK arrival; lost probes and local answers are left out.

    Raises BadInput when the file is missing, has other columns, a field that is no number, or no answer.
    """
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise BadInput(f"cannot read {path} as a capture: {error}") from error
    if not rows or not {"t_send_s", "rtt_s"} <= set(rows[0]):
        raise BadInput(f"{path}: a capture needs columns t_send_s and rtt_s")
    rows = [row for row in rows if row.get("lost", "0") == "0" and row["rtt_s"]]
    if not rows:
        raise BadInput(f"{path}: every probe was lost; a capture needs at least one answer")
    try:
        return _log(rows, low=path.name.startswith("up_dualpi2_l"))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path}: a row has a field that is missing or no number: {error}"
        ) from error


def _log(rows: list[dict[str, str]], low: bool) -> NDArray[Any]:
    """The rows as a log; `low` tells the queue where no row does."""
    log = np.zeros(len(rows), LOG)
    log["t_send"] = [float(row["t_send_s"]) * SECOND for row in rows]
    log["t_ack"] = log["t_send"] + np.array(
        [float(row["rtt_s"]) * SECOND for row in rows], np.int64
    )
    log["t_deliver"], log["t_ready"] = log["t_ack"], log["t_send"]
    log["size"] = [int(float(row.get("size_bytes", _PROBE_BYTES))) for row in rows]
    if "ecn" in rows[0]:
        low_ecn = np.array([int(row["ecn"]) & 1 for row in rows], bool)
        log["sent_ecn"] = np.where(low_ecn, ECT1, ECT0)
        log["ecn"] = np.where([row["ece"] == "1" for row in rows], CE, log["sent_ecn"])
    else:
        log["sent_ecn"] = log["ecn"] = ECT1 if low else ECT0
    rtt = log["t_ack"] - log["t_send"]
    log = log[rtt > _LEAST_SHARE * np.median(rtt)]
    log = log[np.argsort(log["t_ack"], kind="stable")]
    log["seq"] = np.arange(len(log))
    ordered: NDArray[Any] = log
    return ordered
