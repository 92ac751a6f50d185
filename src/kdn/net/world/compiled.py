"""One way to compile: machine code is kept on disk, and all of it goes stale together.

Numba keeps compiled functions beside their source, and forgets one when *its* file changes; a
function inlined from another file would stay as it was.  So the stamp here covers every file of
this folder and of the folders in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

__all__ = ["by_code", "compiled", "compiled_fast"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` as machine code: exact arithmetic, cached on disk, runs without the GIL."""
    return cast("Function", _stamped(njit(cache=True, nogil=True, error_model="numpy")(function)))


def compiled_fast(function: Function) -> Function:
    """As `compiled`, with sums in any order: for the arithmetic of networks, not of protocols."""
    decorate = njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
    return cast("Function", _stamped(decorate(function)))


def by_code(
    name: str, code: str, parameters: str, functions: Sequence[Function], file: str
) -> Function:
    """One compiled function that calls `functions[i]` where the expression `code` is i.

    `file` is the module that keeps the list: machine code is kept beside it.  Compiled code cannot call
    through a table and be kept on disk, so the choice is written out as a chain of comparisons.
    """
    names: dict[str, Any] = {f"function_{i}": function for i, function in enumerate(functions)}
    names["__name__"] = __name__
    lines = [f"def {name}({parameters}):"]
    for i in range(len(functions) - 1):
        lines += [f"    if {code} == {i}:", f"        return function_{i}({parameters})"]
    lines.append(f"    return function_{len(functions) - 1}({parameters})")
    exec(compile("\n".join(lines), file, "exec"), names)  # noqa: S102 (written above, nobody's input)
    return compiled(cast("Function", names[name]))


@cache
def _room_stamp() -> tuple[float, int]:
    stats = [path.stat() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    return max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats)


def _stamped(dispatcher: Any) -> Any:
    """Widen the dispatcher's own stamp; a numba without that attribute keeps its narrower one."""
    index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        own = index._source_stamp  # noqa: SLF001 (numba offers no public way)
        index._source_stamp = (own, _room_stamp())  # noqa: SLF001
    return dispatcher
