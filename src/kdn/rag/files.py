"""From paths to bytes to text: which files are looked at, and why the others are refused.

A file is refused with a reason that says what to do; nothing is decoded by guessing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdn.core import paths_of, texts_of
from kdn.errors import BadInput, DocumentError
from kdn.machine.text import decode_unicode, has_mark, lines_of, normal_lines, read_text
from kdn.rag.encodings import decode_declared, hides_in_ascii
from kdn.rag.ignore import Ignored

__all__ = ["MAX_FILE_BYTES", "Found", "Refusal", "decode", "find_files", "read_bytes", "source_of"]

MAX_FILE_BYTES = 64 * 1024 * 1024

_ODD_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b\b"))
_SNIFF_BYTES = 8192


@dataclass(frozen=True)
class Refusal:
    """A path that was not taken in; `reason` is a whole sentence, path included."""

    path: str
    reason: str


@dataclass
class Found:
    """What a walk met: files to read, in a stable order, and paths that cannot be read."""

    files: list[Path] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """The folders that were asked for and could be listed."""
    named: set[Path] = field(default_factory=set)
    """Files that were asked for by name, not met in a folder."""
    excluded: Ignored = field(default_factory=lambda: Ignored(()))
    """What was asked to be passed over inside each folder."""

    def excludes(self, source: str) -> bool:
        """Does what was asked to be passed over name that file, or a folder that it lies in?"""
        return any(
            _is_ignored(place, ((folder, self.excluded),), is_folder=place != Path(source))
            for folder in self.folders
            for place in (Path(source), *Path(source).parents)
            if folder in place.parents
        )


def source_of(path: Path) -> str:
    """The name a file goes by in the library: its absolute path with forward slashes."""
    return path.resolve().as_posix()


def find_files(
    paths: Path | str | Iterable[Path | str], exclude: str | Iterable[str] = ()
) -> Found:
    """Every regular file named or under a named folder, each once, whatever links lead to it.

    Inside a folder these are passed over: what is hidden, and what a `.gitignore` in it or `exclude`
    (patterns of the same form) names.  Links that lead out of it, or to a folder that is passed over,
    are refused.  A file that is named itself is always taken.  Never raises for a bad path.
    """
    excluded = Ignored(texts_of(exclude, "exclude"))
    found, seen = Found(excluded=excluded), set[Path]()
    for path in paths_of(paths, "paths"):
        try:
            resolved = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            found.refused.append(_unresolved(path, error))
            continue
        if resolved.is_dir():
            before = len(found.refused)
            _walk(resolved, found, seen, excluded)
            if not any(refusal.path == str(resolved) for refusal in found.refused[before:]):
                found.folders.append(resolved)
        else:
            found.named.add(resolved)
            _take(resolved, found, seen)
    return found


def _unresolved(path: Path, error: Exception) -> Refusal:
    if path.is_symlink():
        reason = "a link that leads nowhere, or to itself; repair or remove it"
    elif isinstance(error, FileNotFoundError):
        reason = "no such file or folder; check the spelling"
    else:
        reason = f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    return Refusal(str(path), f"{path}: {reason}")


_Lists = tuple[tuple[Path, Ignored], ...]
"""The lists that count in a folder, each with the folder it stands in."""


def _walk(folder: Path, found: Found, seen: set[Path], excluded: Ignored) -> None:
    """Depth first in the order of names. A folder met again, as in a loop, is not entered."""
    waiting: list[tuple[Path, _Lists]] = [(folder, ((folder, excluded),))]
    while waiting:
        here, lists = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        lists = _with_own(lists, here)
        inner: list[tuple[Path, _Lists]] = []
        for path in _entries(here, found):
            try:
                resolved = path.resolve(strict=True)
            except (OSError, RuntimeError) as error:
                found.refused.append(_unresolved(path, error))
                continue
            is_folder = resolved.is_dir()
            if _is_ignored(path, lists, is_folder=is_folder):
                continue
            if not resolved.is_relative_to(folder):
                reason = f"{path}: a link out of the folder; to take its target in, name that"
                found.refused.append(Refusal(str(path), reason))
            elif not is_folder:
                _take(resolved, found, seen)
            elif resolved == path:
                inner.append((path, lists))
            elif (its_lists := _lists_above(resolved, folder, excluded)) is not None:
                inner.append((resolved, its_lists))
            else:
                reason = f"{path}: a link to a folder that is passed over; to take it in, name that"
                found.refused.append(Refusal(str(path), reason))
        waiting.extend(reversed(inner))


def _lists_above(folder: Path, root: Path, excluded: Ignored) -> _Lists | None:
    """The lists that count for a folder below `root`; None where it is passed over, or one above it."""
    lists: _Lists = ((root, excluded),)
    here = root
    for name in folder.relative_to(root).parts:
        lists = _with_own(lists, here)
        here = here / name
        if name.startswith(".") or _is_ignored(here, lists, is_folder=True):
            return None
    return lists


def _with_own(lists: _Lists, folder: Path) -> _Lists:
    own = _ignore_list(folder)
    return lists if own is None else (*lists, (folder, own))


def _ignore_list(folder: Path) -> Ignored | None:
    """The folder's `.gitignore`, if it has one that can be read."""
    try:
        path = folder / ".gitignore"
        return Ignored(lines_of(read_text(path))) if path.is_file() else None
    except BadInput:
        return None


def _is_ignored(path: Path, lists: _Lists, *, is_folder: bool) -> bool:
    """What is asked for on the command line decides first, then the list nearest to the path."""
    for folder, ignored in (lists[0], *reversed(lists[1:])):
        judged = ignored.judges(path.relative_to(folder).as_posix(), is_folder=is_folder)
        if judged is not None:
            return judged
    return False


def _entries(folder: Path, found: Found) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  only the names are wanted
    except OSError as error:
        reason = f"{folder}: the folder cannot be listed ({error.strerror}); check its rights"
        found.refused.append(Refusal(str(folder), reason))
        return
    yield from (folder / name for name in names if not name.startswith("."))


def _take(path: Path, found: Found, seen: set[Path]) -> None:
    if path in seen:
        return
    seen.add(path)
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        found.refused.append(_unresolved(path, error))
        return
    if regular:
        found.files.append(path)
    else:
        found.refused.append(Refusal(str(path), f"{path}: not a file (a device, pipe or socket)"))


def read_bytes(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The whole file. Raises DocumentError when it is empty, too large or unreadable."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DocumentError(
                f"{path}: {size / 2**20:,.0f} MiB is over the limit of {max_bytes / 2**20:,.0f} MiB"
                " for one file; split it, or raise the limit"
            )
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DocumentError(
            f"{path}: cannot be read ({reason}); check it and its rights"
        ) from error
    if not data.strip():
        raise DocumentError(f"{path}: the file is empty; there is nothing to take in")
    return data


def decode(path: Path, data: bytes, declared: str | None = None) -> str:
    """Text from UTF-8, from UTF-16/32 with a byte-order mark, or from the encoding a file declares.

    Line ends become newlines. Raises DocumentError for binary data and for any other encoding.
    """
    marked = has_mark(data)
    if not marked and looks_binary(data):
        raise DocumentError(f"{path}: binary data, not text; convert it to text or PDF first")
    try:
        if declared is not None and hides_in_ascii(declared) and not marked:
            text = decode_declared(data, declared)
        else:
            text = decode_unicode(data)
    except UnicodeDecodeError as error:
        text = _decode_declared(path, data, declared, error)
    text = normal_lines(text)
    if not text.strip():
        raise DocumentError(f"{path}: the file holds only blanks; there is nothing to take in")
    return text


def _decode_declared(path: Path, data: bytes, declared: str | None, cause: Exception) -> str:
    try:
        if declared and not has_mark(data):
            return decode_declared(data, declared)
    except (LookupError, UnicodeDecodeError):
        pass  # what it declares is wrong: refuse as if it had declared nothing
    raise DocumentError(
        f"{path}: not UTF-8 text ({cause}); save it as UTF-8 and ingest it again,"
        " e.g. iconv -f windows-1252 -t utf-8"
    ) from cause


def looks_binary(data: bytes) -> bool:
    """Does the beginning hold a NUL, or more control characters than text has?"""
    head = data[:_SNIFF_BYTES]
    odd = len(head) - len(head.translate(None, _ODD_CONTROLS))
    return b"\0" in head or odd > len(head) // 50
