"""Tables of a coded clip: bytes and quality of every picture at every level and loss.

A table is measured once with a real codec, and replayed as often as a controller needs to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput

__all__ = ["LOSSES", "RateTable", "read_tables", "write_tables"]

LOSSES = tuple(i / 10 for i in range(10))
"""The losses of a table's last axis."""


@dataclass(frozen=True)
class RateTable:
    """One clip under one codec. Sizes are payload bytes of a whole picture, headers of packets included."""

    name: str
    codec: str
    fps: float
    sizes: NDArray[np.int64]
    """[pictures, levels], predicted from the picture before."""
    intra_sizes: NDArray[np.int64]
    """[pictures, levels], standing alone."""
    ssim: NDArray[np.float64]
    """[pictures, levels, 10 losses]"""
    psnr_db: NDArray[np.float64]
    survives: bool
    """True: any tenth of a picture's bytes decodes. False: nothing may be missing but repair packets."""
    spare: float = 0.0
    """Share of a picture's packets that repair others."""
    carry: float = 0.0
    """The share of a picture's damage that the next picture inherits."""

    def __post_init__(self) -> None:
        num, levels = self.sizes.shape
        shapes = (self.intra_sizes.shape, self.ssim.shape, self.psnr_db.shape)
        want = ((num, levels), (num, levels, len(LOSSES)), (num, levels, len(LOSSES)))
        if shapes != want or not num:
            raise BadInput(f"table {self.name!r}: shapes {shapes} where {want} are wanted")
        if self.sizes.min() <= 0 or np.any(np.diff(self.sizes.mean(0)) < 0):
            raise BadInput(f"table {self.name!r}: sizes must be above 0 and rise with the level")

    @property
    def rates_kbps(self) -> NDArray[np.float64]:
        """The mean rate of every level."""
        return np.asarray(self.sizes.mean(0) * self.fps * 8e-3)


def write_tables(tables: list[RateTable], path: Path) -> None:
    """One file for all tables: sizes whole, qualities as 16-bit fractions of 1 and of 64 dB."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for table in tables:
        key = f"{table.codec}/{table.name}/"
        arrays[key + "sizes"] = table.sizes.astype(np.uint32)
        arrays[key + "intra_sizes"] = table.intra_sizes.astype(np.uint32)
        arrays[key + "ssim"] = np.rint(table.ssim.clip(0, 1) * 65535).astype(np.uint16)
        arrays[key + "psnr"] = np.rint(table.psnr_db.clip(0, 63.9) * 1024).astype(np.uint16)
        facts = (table.fps, float(table.survives), table.spare, table.carry)
        arrays[key + "facts"] = np.array(facts)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_tables(path: Path) -> list[RateTable]:
    """The tables of a file. Raises BadInput for a file that is not one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            keys = dict.fromkeys(name.rpartition("/")[0] for name in stored.files)
            return [_read_one(stored, key) for key in keys]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        reason = error if isinstance(error, OSError) else "it is no file that kdn wrote"
        raise BadInput(f"cannot read {path} as rate tables: {reason}") from error


def _read_one(stored: np.lib.npyio.NpzFile, key: str) -> RateTable:
    codec, _, name = key.partition("/")
    fps, survives, spare, carry = (float(v) for v in stored[f"{key}/facts"])
    return RateTable(
        name,
        codec,
        fps,
        stored[f"{key}/sizes"].astype(np.int64),
        stored[f"{key}/intra_sizes"].astype(np.int64),
        stored[f"{key}/ssim"] / 65535.0,
        stored[f"{key}/psnr"] / 1024.0,
        bool(survives),
        spare,
        carry,
    )
