"""A look at what an ingest would take: it parses files, and of very many a sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.documents import ParsedDocument
from kdn.rag.files import Refusal, find_files, source_of
from kdn.rag.reading import FileReader, RawFile
from kdn.rag.tables import SourceRow

__all__ = ["SAMPLE_BYTES", "Survey", "survey"]

SAMPLE_FILES = 64
SAMPLE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Survey:
    """What was found.

    Tokens are counted where a folder is small, else estimated from those files that were parsed.
    """

    files: tuple[Path, ...]
    refused: tuple[Refusal, ...]
    num_bytes: int
    num_tokens: int
    """Of all files, those that are in the library already included."""
    num_new_tokens: int
    """Of the files that are not in the library as they are."""
    kv_bytes: int | None
    """What the KV of all of it would take, if bytes a token were told."""
    ingest_minutes: float | None
    """To read, cut and embed what is new, if the embedder's rate was told."""
    prefill_minutes: float | None
    """To compute all KV now, if the model's rate was told."""


@dataclass
class _Kind:
    """Files with one ending, while they are looked at."""

    sample_bytes: int
    waiting: list[Path] = field(default_factory=list)
    num_bytes: int = 0
    old_tokens: int = 0
    parsed_bytes: int = 0
    parsed_tokens: int = 0
    other_bytes: int = 0
    """Of files that were not parsed."""

    def count(self, file: RawFile, row: SourceRow | None, parse: Callable[[RawFile], int]) -> None:
        """One more file, which the library holds as `row`. Raises DocumentError as `parse` does."""
        size = len(file.data)
        if row is not None and row.digest == file.digest:
            self.old_tokens += row.num_tokens
        elif self.parsed_bytes >= self.sample_bytes:
            self.other_bytes += size
        else:
            self.parsed_tokens += parse(file)
            self.parsed_bytes += size
        self.num_bytes += size

    @property
    def new_tokens(self) -> float:
        return self.parsed_tokens * (1 + self.other_bytes / (self.parsed_bytes or 1))


def survey(
    paths: Path | str | Iterable[Path | str],
    reader: FileReader,
    tokens_of: Callable[[ParsedDocument], int],
    *,
    exclude: str | Iterable[str] = (),
    known: Mapping[str, SourceRow] | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    kv_bytes_per_token: int | None = None,
    embed_tokens_per_s: float | None = None,
    prefill_tokens_per_s: float | None = None,
) -> Survey:
    """What `ingest` would take. Files that cannot be read are refused, as an ingest refuses them.

    `known` are the rows of the library: unchanged files are not parsed again.  Of each kind of file
    `sample_bytes` are parsed; of more, tokens are estimated from bytes.
    """
    found = find_files(paths, exclude)
    kinds: dict[str, _Kind] = defaultdict(lambda: _Kind(sample_bytes))
    for path in found.files:
        kinds[path.suffix.lower()].waiting.append(path)
    refused: dict[Path, Refusal] = {}
    files: set[Path] = set()
    for kind in kinds.values():
        for path in _spread(kind.waiting):
            row = (known or {}).get(source_of(path))
            try:
                file = reader.read(path, named=path in found.named)
                kind.count(file, row, lambda file: tokens_of(reader.parse(file, hold=True)))
            except DocumentError as error:
                refused[path] = Refusal(str(path), str(error))
            else:
                files.add(path)
    new = sum(kind.new_tokens for kind in kinds.values())
    tokens = new + sum(kind.old_tokens for kind in kinds.values())
    prefill_rate = prefill_tokens_per_s
    return Survey(
        files=tuple(path for path in found.files if path in files),
        refused=(*found.refused, *(refused[path] for path in found.files if path in refused)),
        num_bytes=sum(kind.num_bytes for kind in kinds.values()),
        num_tokens=round(tokens),
        num_new_tokens=round(new),
        kv_bytes=None if kv_bytes_per_token is None else round(tokens * kv_bytes_per_token),
        ingest_minutes=None if embed_tokens_per_s is None else new / embed_tokens_per_s / 60,
        prefill_minutes=None if prefill_rate is None else tokens / prefill_rate / 60,
    )


def _spread(paths: list[Path]) -> Iterator[Path]:
    """All paths, in an order in which the first few stand for all."""
    step = max(1, len(paths) // SAMPLE_FILES)
    for start in range(step):
        yield from paths[start::step]
