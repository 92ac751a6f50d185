"""Patterns of files to pass over, written as in a `.gitignore` (git's manual, gitignore(5)).

`*` and `?` stand for letters of one name, `**` for any folders, `[a-z]` for one of some letters.  A
pattern with a slash before its end begins at the folder of the list, any other fits at every depth.
A slash at the end fits folders only; `!` takes back in what an earlier pattern left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Ignored"]


@dataclass(frozen=True)
class _Pattern:
    fits: re.Pattern[str]
    only_folders: bool
    keeps: bool


class Ignored:
    """The patterns of one list; the last that fits a path decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns = [found for line in lines if (found := _pattern(line)) is not None]

    def judges(self, path: str, *, is_folder: bool) -> bool | None:
        """True to pass over, False to take in, None where no pattern fits.

        `path` is relative to the folder of the list, with forward slashes.
        """
        for pattern in reversed(self._patterns):
            if (is_folder or not pattern.only_folders) and pattern.fits.fullmatch(path):
                return not pattern.keeps
        return None


def _pattern(line: str) -> _Pattern | None:
    text = re.sub(r"(?<!\\)[ \t]+\Z", "", line)
    if not text or text.startswith("#"):
        return None
    keeps = text.startswith("!")
    text = text.removeprefix("!").removeprefix("\\")
    only_folders = text.endswith("/")
    text = text.rstrip("/")
    if not text:
        return None
    anywhere = "" if "/" in text else "(?:.*/)?"
    try:
        fits = re.compile(anywhere + _expression(text.removeprefix("/")), re.DOTALL)
    except re.error:
        return None  # git passes over what it cannot read, too
    return _Pattern(fits, only_folders, keeps)


_PIECE = re.compile(r"\*\*/|/\*\*\Z|\*+|\?|\[!?\]?[^\]]*\]|\\.|.", re.DOTALL)


def _expression(text: str) -> str:
    return "".join(map(_piece, _PIECE.findall(text)))


def _piece(piece: str) -> str:
    match piece:
        case "**/":
            return "(?:.*/)?"
        case "/**":
            return "/.+"
        case "?":
            return "[^/]"
        case _ if piece.startswith("*"):
            return "[^/]*"
        case _ if piece.startswith("[") and len(piece) > 2:
            inside = piece[1:-1].replace("\\", "\\\\")
            return "[^/" + inside[1:] + "]" if inside.startswith("!") else "[" + inside + "]"
        case _:
            return re.escape(piece[1:] if piece.startswith("\\") and len(piece) > 1 else piece)
