"""What a library's folder belongs to: nothing is read or written until it is known to fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from kdn.errors import ForeignStore, StoreError
from kdn.machine.files import make_private, publish_first
from kdn.rag.cut import Encode
from kdn.rag.embed import Embedder

__all__ = ["identify"]

_FORMAT = 1
_PROBE = "The 3 quick_brown foxes didn't jump; über 1,024 naïve dogs: def f(x) -> None"


class _Identity(msgspec.Struct, frozen=True):
    """What the contents of a folder depend on, kept in its `library.json`."""

    format: int
    embedder: str
    dimension: int
    tokenizer: str


def identify(folder: Path, embedder: Embedder, encode: Encode) -> None:
    """Make sure the folder is a library made with these, or begin one and write them down.

    Raises ForeignStore when it was made with others, by a newer kdn, or holds something else.
    """
    mine = _Identity(_FORMAT, embedder.name, embedder.dimension, _fingerprint(encode))
    file = folder / "library.json"
    if not file.exists():
        _begin(folder, file, mine)
    try:
        theirs = msgspec.json.decode(file.read_bytes(), type=_Identity)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise ForeignStore(f"{file}: not a library of kdn ({error}); use another folder") from error
    if theirs.format != mine.format:
        raise ForeignStore(
            f"{folder}: written in format {theirs.format}, this kdn reads {mine.format};"
            " use the kdn that wrote it, or another folder"
        )
    for what, was, now in (
        (
            "embedding model",
            f"{theirs.embedder}, {theirs.dimension}-d",
            f"{mine.embedder}, {mine.dimension}-d",
        ),
        ("tokenizer", theirs.tokenizer, mine.tokenizer),
    ):
        if was != now:
            raise ForeignStore(
                f"{folder}: this library was made with another {what} ({was}, now {now});"
                " open it with that one, or ingest into another folder"
            )


def _begin(folder: Path, file: Path, mine: _Identity) -> None:
    """Write down what the library is made with; where another process did so first, its word holds."""
    try:
        make_private(folder)
        # what is called like `file` is its temporary file: that of another process, or of a killed one
        others = any(
            path.name not in {"tables", "writer.lock"} and file.name not in path.name
            for path in folder.iterdir()
        )
        if others and not file.exists():
            raise ForeignStore(f"{folder}: holds other files; give the library a folder of its own")
        publish_first(file, msgspec.json.encode(mine))
    except OSError as error:
        raise StoreError(f"{folder}: no library can be made there ({error.strerror})") from error


def _fingerprint(encode: Encode) -> str:
    """Tells tokenizers apart by what they make of one sentence."""
    ids = ",".join(map(str, encode(_PROBE)))
    return hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
