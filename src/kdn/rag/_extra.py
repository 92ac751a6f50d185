"""Without the room's libraries, importing it names the extra that brings them."""

from __future__ import annotations

from importlib.util import find_spec

from kdn.errors import MissingExtra

_NEEDED = ("docutils", "lancedb", "markdown_it", "numpy", "pyarrow", "pypdf", "selectolax")
_missing = [name for name in _NEEDED if find_spec(name) is None]
if _missing:
    raise MissingExtra(
        f"working with documents needs {', '.join(_missing)}; run: pip install 'kdn[rag]'"
    )
