"""The library that makes a program's disk fail and its clock jump: compiled, told, and counted."""

from __future__ import annotations

import ctypes
import errno
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["Preload"]


class Page(ctypes.Structure):
    """As `struct page` of faults.c."""

    _fields_ = [
        ("write_errno", ctypes.c_int32),
        ("sync_errno", ctypes.c_int32),
        ("read_errno", ctypes.c_int32),
        ("short_reads", ctypes.c_int32),
        ("delay_us", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("clock_offset_s", ctypes.c_int64),
        ("writes", ctypes.c_int64),
        ("syncs", ctypes.c_int64),
        ("reads", ctypes.c_int64),
        ("shorts", ctypes.c_int64),
        ("delays", ctypes.c_int64),
        ("clocks", ctypes.c_int64),
    ]


_DISK = {
    "ENOSPC while writing": ("write_errno", errno.ENOSPC),
    "EIO while writing": ("write_errno", errno.EIO),
    "EIO while syncing": ("sync_errno", errno.EIO),
    "EIO while reading": ("read_errno", errno.EIO),
    "short reads": ("short_reads", 1),
    "slow reads and writes": ("delay_us", 20_000),
}


class Preload:
    """The faults of one program's disk, under `folder` only, and of its clock."""

    def __init__(self, work: Path, folder: Path) -> None:
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("the campaign's disk faults need gcc")
        library, page = work / "faults.so", work / "faults.page"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
        )
        page.write_bytes(bytes(4096))
        with page.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self._page = Page.from_buffer(self._map)
        self.environment = {
            "LD_PRELOAD": str(library),
            "SOAK_PAGE": str(page),
            "SOAK_FOLDER": str(folder),
        }

    def begin(self, where: str, how: str, amount: int) -> None:
        """A fault of the plan begins."""
        if where == "clock":
            self._page.clock_offset_s = amount
        else:
            name, value = _DISK[how]
            setattr(self._page, name, value)

    def end(self, where: str, how: str) -> None:
        """It is over."""
        if where == "clock":
            self._page.clock_offset_s = 0
        else:
            setattr(self._page, _DISK[how][0], 0)

    def counts(self) -> dict[str, int]:
        """Calls that met a fault."""
        names = ("writes", "syncs", "reads", "shorts", "delays", "clocks")
        return {name: getattr(self._page, name) for name in names}
