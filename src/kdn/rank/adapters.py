"""Rerankers that come with kdn: LoRA adapters over a small model, trained for one layout each."""

from __future__ import annotations

from pathlib import Path

from kdn.rank.layouts import Layout

__all__ = ["MODEL_ALONE", "layout_adapters", "packaged_adapters"]

_FOLDER = Path(__file__).parent / "trained"

MODEL_ALONE = "none"
"""What stands in place of an adapter's name where a model is to rank without one."""


def packaged_adapters(model: str | Path) -> dict[str, Path]:
    """The adapters for a model that goes by a name, by their own names; empty if there are none.

    `document-first` and `query-first` are named for the layout they were trained in; those that end in
    `-unlabelled` have seen no question that a person asked.  scripts/train_reranker.py makes them.
    """
    folder = _FOLDER / str(model)
    if Path(model).name != str(model) or not folder.is_dir():
        return {}
    return {one.name: one for one in sorted(folder.iterdir()) if one.is_dir()}


def layout_adapters(model: str | Path) -> dict[str, Path]:
    """Of the packaged adapters those that rank by default: one for each layout, named for it."""
    layouts = {layout.value for layout in Layout}
    return {name: path for name, path in packaged_adapters(model).items() if name in layouts}
