"""One way to compile: machine code is kept on disk, and all of it goes stale together.

Numba keeps compiled functions beside their source, and forgets one when *its* file changes; a
function inlined from another file would stay as it was.  So the stamp here covers every file of
this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from kdn.errors import MissingExtra

try:
    from numba import njit
except ImportError as error:
    raise MissingExtra(
        "the packet world is compiled by numba, which is not installed: pip install 'kdn[net]'"
    ) from error

__all__ = ["compiled", "compiled_fast"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` as machine code: exact arithmetic, cached on disk, runs without the GIL."""
    return cast("Function", _stamped(njit(cache=True, nogil=True, error_model="numpy")(function)))


def compiled_fast(function: Function) -> Function:
    """As `compiled`, with sums in any order: for the arithmetic of networks, not of protocols."""
    decorate = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
    return cast("Function", _stamped(decorate(function)))


@cache
def _room_stamp() -> tuple[float, int]:
    stats = [path.stat() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


def _stamped(dispatcher: Any) -> Any:
    """Widen the dispatcher's own stamp; a numba without that attribute keeps its narrower one."""
    index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        own = index._source_stamp  # noqa: SLF001 (numba offers no public way)
        index._source_stamp = (own, _room_stamp())  # noqa: SLF001
    return dispatcher
