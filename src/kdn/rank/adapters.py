"""Rerankers that come with kdn: LoRA adapters over a small model, trained for one layout each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kdn.errors import BadInput
from kdn.machine.files import expanded
from kdn.rank.layouts import Layout

__all__ = ["MODEL_ALONE", "adapter_folders", "layout_adapters", "packaged_adapters"]

_FOLDER = Path(__file__).parent / "trained"

MODEL_ALONE = "none"
"""What stands in place of an adapter's name where a model is to rank without one."""


def packaged_adapters(model: str | Path) -> dict[str, Path]:
    """The adapters for a model that goes by a name, by their own names; empty if there are none.

    `document-first` and `query-first` are named for the layout they were trained in; those that end in
    `-unlabelled` have seen no question that a person asked.  scripts/rank/train.py makes them.
    """
    folder = _FOLDER / str(model)
    if Path(model).name != str(model) or not folder.is_dir():
        return {}
    return {one.name: one for one in sorted(folder.iterdir()) if one.is_dir()}


def adapter_folders(given: object) -> dict[str, Path]:
    """The folders of adapters by name, as callers give them. Raises BadInput for what is no mapping."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadInput(f"adapters is a {type(given).__name__}; it must map names to folders")
    for name, folder in given.items():
        if not isinstance(name, str) or not isinstance(folder, str | os.PathLike):
            raise BadInput(f"adapters: {name!r:.60} stands for {folder!r:.60}, which is no folder")
    return {name: expanded(folder) for name, folder in given.items()}


def layout_adapters(model: str | Path) -> dict[str, Path]:
    """Of the packaged adapters those that rank by default: one for each layout, named for it."""
    layouts = {layout.value for layout in Layout}
    return {name: path for name, path in packaged_adapters(model).items() if name in layouts}
