"""The file that says that a folder is a store, of which format and by which name."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from kdn.errors import ForeignStore
from kdn.machine.files import Files, publish_first
from kdn.store.block.format import FORMAT_VERSION

__all__ = ["MARKER", "claim", "is_store", "read_marker"]

MARKER = "kdn-store.json"
_HARMLESS = {"lost+found", ".DS_Store"}


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kdn_store: int
    """The format version."""
    identity: str


def claim(path: Path, files: Files) -> str:
    """The identity of the store in `path`, which becomes a store if it is empty.

    Raises ForeignStore for a folder that holds something else, and OSError.
    """
    marker = path / MARKER
    if not marker.exists():
        others = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.name not in _HARMLESS and MARKER not in entry.name
        )
        if others and not marker.exists():
            raise ForeignStore(
                f"{path} is no kdn store and not empty (it holds {others[0]}): choose another"
                " folder for the store, or an empty one"
            )
        mine = _Marker(FORMAT_VERSION, secrets.token_hex(16))
        publish_first(marker, msgspec.json.encode(mine), files)
    return read_marker(path)


def is_store(path: Path) -> bool:
    """Does the folder say that it is a store, of whatever format?"""
    return (path / MARKER).exists()


def read_marker(path: Path) -> str:
    """The identity of the store in `path`. Raises ForeignStore and OSError."""
    marker = path / MARKER
    try:
        found = msgspec.json.decode(marker.read_bytes(), type=_Marker)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ForeignStore(
            f"{marker} cannot be read as a store's marker ({error}): choose another folder for the"
            " store, or remove this one if its blocks may go"
        ) from error
    if found.kdn_store != FORMAT_VERSION:
        raise ForeignStore(
            f"{marker.parent} is a store of format {found.kdn_store}, this kdn reads"
            f" {FORMAT_VERSION}: use the kdn that made it, or another folder"
        )
    return found.identity
