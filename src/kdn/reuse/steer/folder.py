"""Recipes that a home keeps by name: `steer/NAME.json`, read whenever one is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdn.core import Fingerprint
from kdn.errors import BadInput
from kdn.machine.files import readable_folder
from kdn.reuse.steer.option import LOOKS
from kdn.reuse.steer.recipe import SteerRecipe

__all__ = ["RecipeFolder"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAKEN = (*LOOKS, "retrieved")
"""What `steer` means already."""


@dataclass(frozen=True)
class RecipeFolder:
    """The recipes of one home, in its folder `steer`, for one model."""

    home: Path
    fingerprint: Fingerprint | None = None
    """The model's; without it recipes of any model are handed out."""

    @property
    def folder(self) -> Path:
        return self.home / "steer"

    def file(self, name: str) -> Path:
        """Where a recipe of that name belongs. Raises BadInput for what can be no name of one."""
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise BadInput(
                f"{name!r:.60} can be no recipe's name; take letters, digits, dots, dashes and"
                f" underscores, at most 64, and none of {', '.join(_TAKEN)}"
            )
        return self.folder / f"{name}.json"

    def names(self) -> list[str]:
        """Those there are, in order."""
        return sorted(file.stem for file in readable_folder(self.folder).glob("*.json"))

    def named(self, name: str) -> SteerRecipe:
        """The recipe of that name. Raises BadInput where there is none, and for another model's."""
        file = self.file(name) if _NAME.fullmatch(name) and name not in _TAKEN else None
        if file is None or not file.is_file():
            known = ", ".join(self.names()[:8])
            there = f"there are {known}" if known else "make one with kdn steer fit --name NAME"
            raise BadInput(f"no steering recipe is named {name!r:.60}; {there}")
        recipe = SteerRecipe.decode(file.read_bytes(), file.name)
        if self.fingerprint is not None:
            recipe.check_model(self.fingerprint)
        return recipe
