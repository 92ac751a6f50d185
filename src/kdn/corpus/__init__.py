"""The demo corpus: a few public-domain documents that travel with the package.

Trades in paths of files.  Every room above may import it.  Start reading at `README.md`, which says
where the documents come from.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["corpus_files"]


def corpus_files() -> list[Path]:
    """The documents in the order of their names."""
    return sorted(Path(__file__).parent.glob("*.rst"))
