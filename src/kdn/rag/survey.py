"""A quick look at what an ingest would take: nothing is parsed, only sizes are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.files import MAX_FILE_BYTES, Refusal, find_files, looks_binary
from kdn.rag.parse import parser_for

__all__ = ["Survey", "survey"]

_BYTES_PER_TOKEN = {".html": 9.0, ".htm": 9.0, ".xhtml": 9.0, ".pdf": 40.0}
_PLAIN_BYTES_PER_TOKEN = 4.2


@dataclass(frozen=True)
class Survey:
    """What was found. Tokens, bytes and minutes are estimates from file sizes."""

    files: tuple[Path, ...]
    refused: tuple[Refusal, ...]
    num_bytes: int
    num_tokens: int
    kv_bytes: int | None
    """What the KV of all of it would take, if bytes a token were told."""
    ingest_minutes: float | None
    """To read, cut and embed, if the embedder's rate was told."""
    prefill_minutes: float | None
    """To compute all KV now, if the model's rate was told."""


def survey(
    paths: Iterable[Path | str],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    kv_bytes_per_token: int | None = None,
    embed_tokens_per_s: float | None = None,
    prefill_tokens_per_s: float | None = None,
) -> Survey:
    """Sizes of what `ingest` would look at. Files that plainly cannot be read are refused."""
    found = find_files(paths)
    files: list[Path] = []
    refused = list(found.refused)
    num_bytes, tokens = 0, 0.0
    for path in found.files:
        try:
            size = _size(path, named=path in found.named, max_bytes=max_file_bytes)
        except DocumentError as error:
            refused.append(Refusal(str(path), str(error)))
            continue
        files.append(path)
        num_bytes += size
        tokens += size / _BYTES_PER_TOKEN.get(path.suffix.lower(), _PLAIN_BYTES_PER_TOKEN)
    return Survey(
        files=tuple(files),
        refused=tuple(refused),
        num_bytes=num_bytes,
        num_tokens=round(tokens),
        kv_bytes=None if kv_bytes_per_token is None else round(tokens * kv_bytes_per_token),
        ingest_minutes=None if embed_tokens_per_s is None else tokens / embed_tokens_per_s / 60,
        prefill_minutes=None
        if prefill_tokens_per_s is None
        else tokens / prefill_tokens_per_s / 60,
    )


def _size(path: Path, *, named: bool, max_bytes: int) -> int:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise DocumentError(
            f"{path}: cannot be read ({error.strerror}); check its rights"
        ) from error
    if not head.strip() and size <= len(head):
        raise DocumentError(f"{path}: the file is empty; there is nothing to take in")
    if size > max_bytes:
        raise DocumentError(f"{path}: {size:,} bytes is over the limit of {max_bytes:,}; split it")
    parser_for(path, head, named=named)
    marked = head.startswith((b"%PDF-", b"\xff\xfe", b"\xfe\xff"))  # UTF-16 is full of NULs
    if not marked and looks_binary(head):
        raise DocumentError(f"{path}: binary data, not text; convert it to text or PDF first")
    return size
