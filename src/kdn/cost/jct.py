"""How long a prompt takes: counted from shapes at first, fitted to a small grid once measured.

The form is PrefillOnly's (arXiv 2505.07203, section 6: a linear regression over new and cached tokens)
with the attention term written out, so that it holds beyond the grid it was fitted on.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kdn.core import JctModel, KvShape
from kdn.errors import BadInput
from kdn.machine.files import publish_file
from kdn.machine.text import counted

__all__ = [
    "GRID",
    "PACKED",
    "JctSample",
    "count_jct",
    "fit_jct",
    "jct_file",
    "load_jct",
    "save_jct",
]

GRID: tuple[tuple[int, int], ...] = (
    *((new, 0) for new in (32, 256, 768, 1536)),
    *((new, cached) for new in (32, 256) for cached in (512, 1536)),
)
"""(new, cached) tokens that are measured by default."""
PACKED: tuple[tuple[int, int, int], ...] = ((24, 512, 4), (24, 1536, 8))
"""(new, cached, prompts): passes of several prompts that share what is cached, measured as well."""

_FLOPS_PER_S = 3e11
_COPY_BYTES_PER_S = 5e9
"""A laptop's order of magnitude, for counts before anything was measured."""


@dataclass(frozen=True)
class JctSample:
    """A measured pass: one prompt, or several equal ones that share what is cached."""

    num_new: int
    num_cached: int
    seconds: float
    num_prompts: int = 1


def count_jct(
    weights_per_token: int, q_size: int, kv: KvShape, flops_per_s: float = _FLOPS_PER_S
) -> JctModel:
    """The model from a count of operations: two per weight and token, four per head value and pair.

    Good for putting jobs in order, not for promising times.
    """
    return JctModel(
        pass_s=0.0,
        token_s=2 * weights_per_token / flops_per_s,
        pair_s=4 * q_size * kv.num_layers / flops_per_s,
        cached_s=kv.token_bytes / _COPY_BYTES_PER_S,
    )


def fit_jct(samples: Sequence[JctSample]) -> JctModel:
    """Least squares of the relative error, no coefficient below zero, its own error reported.

    Raises BadInput for fewer samples than coefficients.
    """
    if len(samples) < 4:
        raise BadInput(
            f"{counted(len(samples), 'measurement')} cannot fit four coefficients; measure more"
        )
    seconds = np.array([sample.seconds for sample in samples])
    table = np.array([_features(sample) for sample in samples]) / seconds[:, None]
    columns = [column for column in range(table.shape[1]) if table[:, column].any()]
    found = np.zeros(table.shape[1])
    while columns:
        part = np.linalg.lstsq(table[:, columns], np.ones(len(samples)), rcond=None)[0]
        if (part >= 0).all():
            found[columns] = part
            break
        columns.pop(int(part.argmin()))
    pass_s, token_s, pair_s, cached_s, prompt_s = map(float, found)
    error = statistics.median(abs(float(ratio) - 1) for ratio in table @ found)
    return JctModel(pass_s, token_s, pair_s, cached_s, error, "fit", prompt_s)


def _features(sample: JctSample) -> tuple[float, float, float, float, float]:
    """What the coefficients of JctModel are multiplied by."""
    new, cached, prompts = sample.num_new, sample.num_cached, sample.num_prompts
    pairs = new * (cached + (new + 1) / 2)
    return (1.0, float(prompts * new), prompts * pairs, float(cached), prompts - 1.0)


# --- keeping a fit ---------------------------------------------------------------------------


def jct_file(home: Path, model: str, device: str, threads: int) -> Path:
    """Where the fit of one model on one device is kept; `model` is its fingerprint."""
    name = re.sub(r"[^\w.-]", "-", f"{model[:16]}-{device}-{threads}")
    return home / "cost" / f"jct-{name}.json"


def save_jct(model: JctModel, path: Path) -> None:
    """Write a fit, whole or not at all. Raises StoreError when that is impossible."""
    publish_file(path, msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")


def load_jct(path: Path) -> JctModel | None:
    """A fit that was kept; None when there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=JctModel)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
