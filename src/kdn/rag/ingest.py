"""One run of taking files in: read, parse, cut, embed what is new, write, commit.

Documents are committed in groups, after all their rows are written; a run that is cancelled or
killed leaves the groups before it whole and nothing of the one it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdn.clock import Clock
from kdn.errors import BadInput, Cancelled, DocumentError
from kdn.rag.catalogue import SourceCatalogue
from kdn.rag.cut import CutDocument, Cutting, Encode, Passage, cut
from kdn.rag.documents import ParsedDocument
from kdn.rag.embed import Embedder, Vectors
from kdn.rag.files import Found, Refusal, find_files, source_of
from kdn.rag.reading import FileReader, digest_of
from kdn.rag.tables import SourceRow, Tables

__all__ = ["IngestReport", "Ingestion", "Progress"]

_GROUP_PASSAGES = 512
_EMBED_AT_ONCE = 128


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Bytes are those of files that are done with."""

    source: str
    files_done: int
    num_files: int
    bytes_done: int
    num_bytes: int
    tokens_done: int
    """Of the passages embedded so far."""


@dataclass(frozen=True)
class IngestReport:
    """What became of each file, by source."""

    added: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    refused: tuple[Refusal, ...]
    num_passages: int
    """New passages: those that had to be embedded."""
    num_parts: int
    """New parts."""
    num_tokens: int
    """Tokens of the new passages."""
    seconds: float
    cancelled: bool
    """The run was stopped early; what is listed above is nevertheless done and whole."""


@dataclass
class _Outcome:
    """The report while it grows."""

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    num_passages: int = 0
    num_parts: int = 0
    num_tokens: int = 0

    def report(self, seconds: float, *, cancelled: bool) -> IngestReport:
        return IngestReport(
            added=tuple(self.added),
            updated=tuple(self.updated),
            unchanged=tuple(self.unchanged),
            removed=tuple(self.removed),
            refused=tuple(self.refused),
            num_passages=self.num_passages,
            num_parts=self.num_parts,
            num_tokens=self.num_tokens,
            seconds=seconds,
            cancelled=cancelled,
        )


@dataclass(frozen=True)
class _Prepared:
    """A document ready to be written."""

    cut: CutDocument
    digest: str
    size_bytes: int
    new: tuple[Passage, ...]
    vectors: Vectors


class Ingestion:
    """The state of one run. The caller holds the writer lock and has swept the tables."""

    def __init__(
        self,
        tables: Tables,
        catalogue: SourceCatalogue,
        *,
        embedder: Embedder,
        encode: Encode,
        cutting: Cutting,
        clock: Clock,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._tables = tables
        self._catalogue = catalogue
        self._embedder = embedder
        self._encode = encode
        self._cutting = cutting
        self._clock = clock
        self._on_progress = on_progress or (lambda _: None)
        self._cancelled = cancelled or (lambda: False)
        self._waiting: list[_Prepared] = []
        self._outcome = _Outcome()
        self._progress = Progress("", 0, 0, 0, 0, 0)

    def files(
        self,
        paths: Path | str | Iterable[Path | str],
        reader: FileReader,
        exclude: str | Iterable[str] = (),
    ) -> IngestReport:
        """Take files and folders in; documents whose file has left a given folder are removed."""
        found = find_files(paths, exclude)
        self._outcome.refused.extend(found.refused)
        sizes = [_size(path) for path in found.files]
        self._progress = Progress("", 0, len(sizes), 0, sum(sizes), 0)

        def take() -> None:
            for path, size in zip(found.files, sizes, strict=True):
                self._stop_if_cancelled()
                self._file(path, path in found.named, reader)
                self._advance(source_of(path), 1, size)
            self._write()
            self._remove(self._gone(found))

        return self._run(take)

    def documents(self, documents: Iterable[ParsedDocument]) -> IngestReport:
        """Take in documents that are not files."""

        def take() -> None:
            met: set[str] = set()
            for document in documents:
                self._stop_if_cancelled()
                if document.source in met:
                    raise BadInput(f"two documents are called {document.source!r}; rename one")
                met.add(document.source)
                data = repr((document.title, document.text, document.sections)).encode()
                if self._is_new(document.source, digest := digest_of(data, self._cutting)):
                    self._prepare(document, digest, len(document.text.encode()))
                self._advance(document.source, 1, 0)
            self._write()

        return self._run(take)

    def _run(self, take: Callable[[], None]) -> IngestReport:
        started, cancelled = self._clock.now(), False
        try:
            take()
        except Cancelled:
            cancelled = True
            self._write()  # what is ready is whole, and its work need not be lost
        self._tables.refresh_index()
        return self._outcome.report(self._clock.now() - started, cancelled=cancelled)

    def _file(self, path: Path, named: bool, reader: FileReader) -> None:
        try:
            file = reader.read(path, named=named)
            if self._is_new(source_of(path), file.digest):
                self._prepare(reader.parse(file), file.digest, len(file.data))
        except DocumentError as error:
            self._outcome.refused.append(Refusal(str(path), str(error)))

    def _is_new(self, source: str, digest: str) -> bool:
        row = self._catalogue.rows.get(source)
        if row is None or row.digest != digest:
            return True
        self._outcome.unchanged.append(source)
        return False

    def _prepare(self, document: ParsedDocument, digest: str, size_bytes: int) -> None:
        pieces = cut(document, self._encode, self._cutting)
        new = tuple(p for p in pieces.passages if p.key not in self._catalogue.part_of)
        vectors = self._embed(document.source, new)
        self._waiting.append(_Prepared(pieces, digest, size_bytes, new, vectors))
        if sum(len(prepared.new) for prepared in self._waiting) >= _GROUP_PASSAGES:
            self._write()

    def _embed(self, source: str, passages: tuple[Passage, ...]) -> Vectors:
        vectors = [np.zeros((0, self._embedder.dimension), dtype=np.float32)]
        for start in range(0, len(passages), _EMBED_AT_ONCE):
            some = passages[start : start + _EMBED_AT_ONCE]
            vectors.append(self._embedder.embed([passage.index_text for passage in some]))
            self._advance(source, tokens=sum(passage.num_tokens for passage in some))
            self._stop_if_cancelled()
        return np.concatenate(vectors)

    def _write(self) -> None:
        """Rows first, then the commit, then what the commit made stale."""
        group, self._waiting = self._waiting, []
        if not group:
            return
        new = [passage for prepared in group for passage in prepared.new]
        if new:
            self._tables.add_passages(new, np.concatenate([p.vectors for p in group]))
        for prepared in group:
            parts = [p for p in prepared.cut.parts if p.key not in self._catalogue.passages_of]
            self._outcome.num_parts += len(parts)
            if parts:
                self._tables.add_parts(prepared.cut.source, prepared.cut.title, parts)
        rows = [self._row(prepared) for prepared in group]
        self._tables.commit(rows)
        self._note(rows, new)
        self._drop_stale(rows)

    def _row(self, prepared: _Prepared) -> SourceRow:
        pieces = prepared.cut
        return SourceRow(
            source=pieces.source,
            title=pieces.title,
            digest=prepared.digest,
            size_bytes=prepared.size_bytes,
            num_tokens=pieces.num_tokens,
            ingested_at=self._clock.wall(),
            passages=tuple(passage.key for passage in pieces.passages),
            parts=tuple(part.key for part in pieces.parts),
            part_sizes=tuple(len(part.passages) for part in pieces.parts),
        )

    def _note(self, rows: Iterable[SourceRow], new: Iterable[Passage]) -> None:
        for row in rows:
            known = row.source in self._catalogue.rows
            (self._outcome.updated if known else self._outcome.added).append(row.source)
        for passage in new:
            self._outcome.num_passages += 1
            self._outcome.num_tokens += passage.num_tokens

    def _drop_stale(self, rows: Iterable[SourceRow]) -> None:
        passages: list[str] = []
        parts: list[str] = []
        for row in rows:
            before = self._catalogue.rows.get(row.source)
            if before is not None:
                passages.extend(set(before.passages) - set(row.passages))
                parts.extend(set(before.parts) - set(row.parts))
        self._tables.drop(passages, parts)

    def _gone(self, found: Found) -> list[str]:
        """Documents under a given folder whose file is no longer there, or was asked to be left out."""
        met = {source_of(path) for path in found.files}
        roots = tuple(folder.as_posix().rstrip("/") + "/" for folder in found.folders)
        hidden = tuple(Path(refusal.path).as_posix() for refusal in found.refused)
        return [
            source
            for source in self._catalogue.rows
            if source.startswith(roots)
            and source not in met
            and not any(source == path or source.startswith(path + "/") for path in hidden)
            and (_left(source) or found.excludes(source))
        ]

    def _remove(self, sources: list[str]) -> None:
        remove(self._tables, self._catalogue, sources)
        self._outcome.removed.extend(sources)

    def _advance(self, source: str, files: int = 0, size: int = 0, tokens: int = 0) -> None:
        now = self._progress
        self._progress = Progress(
            source=source,
            files_done=now.files_done + files,
            num_files=max(now.num_files, now.files_done + files),
            bytes_done=now.bytes_done + size,
            num_bytes=now.num_bytes,
            tokens_done=now.tokens_done + tokens,
        )
        self._on_progress(self._progress)

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled("ingest was stopped; what was reported done is kept")


def remove(tables: Tables, catalogue: SourceCatalogue, sources: Iterable[str]) -> None:
    """Take documents out: of the list first, so that a kill in between leaves rows to sweep."""
    rows = [catalogue.rows[source] for source in sources]
    if rows:
        tables.retire([row.source for row in rows])
        tables.drop(
            [key for row in rows for key in row.passages], [k for row in rows for k in row.parts]
        )


def _left(source: str) -> bool:
    """Does no file go by this name any more? One that a walk passes over may have been named itself."""
    try:
        found = Path(source).resolve(strict=True)
        return found.as_posix() != source or found.is_dir()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, RuntimeError):
        return False  # whether it is there cannot be seen: nothing is taken out on a guess


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone since the walk: reading it will say so
