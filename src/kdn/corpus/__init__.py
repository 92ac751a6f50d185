"""The demo corpus: a few public-domain documents that travel with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["corpus_files"]


def corpus_files() -> list[Path]:
    """The documents in the order of their names."""
    return sorted(Path(__file__).parent.glob("*.rst"))
