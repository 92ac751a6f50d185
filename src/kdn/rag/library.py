"""The library: documents in a folder, searchable, and cut into the parts that enter prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdn.clock import Clock
from kdn.errors import BadConfig, BadInput, PromptTooLong, StoreError
from kdn.machine.text import counted
from kdn.rag.catalogue import SourceCatalogue, catalogue_of, named, parts_of
from kdn.rag.cut import Cutting, Encode, cut
from kdn.rag.documents import ParsedDocument
from kdn.rag.embed import Embedder
from kdn.rag.files import MAX_FILE_BYTES
from kdn.rag.identity import identify
from kdn.rag.ingest import Ingestion, IngestReport, Progress, remove
from kdn.rag.lock import writing
from kdn.rag.ranking import deepened, fuse, parts_in_order
from kdn.rag.reading import FileReader, ParsedLately
from kdn.rag.results import Hit, LibraryStat, Part, SourceInfo, fitting, with_hits
from kdn.rag.support import Support, coverage, support_of
from kdn.rag.survey import SAMPLE_BYTES, Survey, survey
from kdn.rag.tables import Scored, Tables, need_extra

__all__ = ["Library", "LibrarySettings", "SearchMode"]

SearchMode = Literal["hybrid", "vector", "text"]

_DEPTH = 50
"""How many passages of each ranking are fused, at least."""


@dataclass(frozen=True)
class LibrarySettings:
    """How documents are taken in."""

    cutting: Cutting = field(default_factory=Cutting)
    max_file_bytes: int = MAX_FILE_BYTES


class Library:
    """Documents in a folder. Any number of processes may read it; one at a time writes."""

    def __init__(
        self,
        folder: Path,
        tables: Tables,
        *,
        embedder: Embedder,
        encode: Encode,
        clock: Clock,
        config: LibrarySettings,
    ) -> None:
        self._folder = folder
        self._tables = tables
        self._embedder = embedder
        self._encode = encode
        self._clock = clock
        self._config = config
        self._seen: SourceCatalogue | None = None
        self._lately = ParsedLately()

    @staticmethod
    def open(
        folder: Path,
        embedder: Embedder,
        encode: Encode,
        clock: Clock,
        config: LibrarySettings | None = None,
    ) -> Library:
        """Open the library in `folder`, or begin one there; sweep out what a killed writer left.

        `encode` turns text into token ids of the model that will answer, without special tokens.
        Raises ForeignStore when the folder was made with another embedder or tokenizer, by a newer
        kdn, or holds something else, and MissingExtra without the packages of the extra `rag`.
        """
        need_extra()
        config = config or LibrarySettings()
        if not 16 <= config.cutting.passage_tokens <= config.cutting.part_tokens:
            raise BadConfig(
                f"passages of {counted(config.cutting.passage_tokens, 'token')} in parts of"
                f" {config.cutting.part_tokens}: need 16 <= passages <= parts"
            )
        identify(folder, embedder, encode)
        tables = Tables(folder / "tables", embedder.dimension)
        library = Library(
            folder, tables, embedder=embedder, encode=encode, clock=clock, config=config
        )
        library._sweep_if_needed()
        return library

    # --- documents ---------------------------------------------------------------------------

    def survey(
        self,
        paths: Path | str | Iterable[Path | str],
        *,
        exclude: str | Iterable[str] = (),
        kv_bytes_per_token: int | None = None,
        embed_tokens_per_s: float | None = None,
        prefill_tokens_per_s: float | None = None,
        sample_bytes: int = SAMPLE_BYTES,
    ) -> Survey:
        """What `ingest` would take. Changes nothing; an ingest that follows need not parse again.

        Of each kind of file `sample_bytes` are parsed; of more, tokens are estimated from bytes.
        """

        def tokens_of(document: ParsedDocument) -> int:
            pieces = cut(document, self._encode, self._config.cutting)
            return sum(passage.num_tokens for passage in pieces.passages)

        with _reader(self._config, self._lately) as reader:
            return survey(
                paths,
                reader,
                tokens_of,
                exclude=exclude,
                known=self._catalogue().rows,
                kv_bytes_per_token=kv_bytes_per_token,
                embed_tokens_per_s=embed_tokens_per_s,
                prefill_tokens_per_s=prefill_tokens_per_s,
                sample_bytes=sample_bytes,
            )

    def ingest(
        self,
        paths: Path | str | Iterable[Path | str],
        *,
        exclude: str | Iterable[str] = (),
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Take files and folders in, or take them in again; only what changed is embedded and written.

        A file that cannot be read is reported and never stops the others. A document whose file has
        left a given folder is removed. `exclude` names what to pass over inside folders, in the form
        of a `.gitignore`, which is kept to as well. Raises StoreError when another writer is at work.
        """
        with writing(self._folder), _reader(self._config, self._lately) as reader:
            return self._ingestion(on_progress, cancelled).files(paths, reader, exclude)

    def add(
        self,
        documents: Iterable[ParsedDocument],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Take in documents that are not files, by the same rules."""
        with writing(self._folder):
            return self._ingestion(on_progress, cancelled).documents(documents)

    def delete(self, source: str) -> int:
        """Take out a document, or all under a folder; how many those were.

        `source` is a name as `sources` gives it, or a path. Raises BadInput when there is none.
        """
        with writing(self._folder):
            catalogue = self._catalogue()
            found = named(catalogue, source)
            if not found:
                raise BadInput(
                    f"no document {source!r} in the library of {counted(len(catalogue.rows), 'document')};"
                    " list its sources to see their names"
                )
            remove(self._tables, catalogue, found)
            return len(found)

    def sources(self) -> list[SourceInfo]:
        """All documents, by the order of their names."""
        return [
            SourceInfo(
                source=row.source,
                title=row.title,
                size_bytes=row.size_bytes,
                num_tokens=row.num_tokens,
                num_passages=len(row.passages),
                num_parts=len(row.parts),
                ingested_at=row.ingested_at,
            )
            for row in self._catalogue().rows.values()
        ]

    def parts(self, source: str | None = None) -> Iterator[Part]:
        """Every part of one document, or of all, in the order of the text.

        Raises BadInput when no document goes by that name.
        """
        catalogue = self._catalogue()
        names = list(catalogue.rows) if source is None else named(catalogue, source)
        if source is not None and not names:
            raise BadInput(f"no document {source!r} in the library")
        for name in names:
            yield from parts_of(self._tables, catalogue, catalogue.rows[name].parts)

    # --- questions ---------------------------------------------------------------------------

    def search(self, query: str, k: int = 5, mode: SearchMode = "hybrid") -> list[Hit]:
        """The `k` passages that fit best, best first; fewer when fewer are found.

        `hybrid` fuses the rankings by meaning (`vector`) and by words (`text`).
        Raises BadInput for an empty query, a `k` below 1 or an unknown mode.
        """
        if not query.strip():
            raise BadInput("the query is empty; give some words to search for")
        if k < 1:
            raise BadInput(f"k must be at least 1, not {k}")
        catalogue = self._catalogue()
        depth = max(_DEPTH, 2 * k)
        match mode:
            case "vector":
                hits = [Hit(s.passage, s.score) for s in self._nearest(catalogue, query, depth)]
            case "text":
                matching = _live(catalogue, self._tables.matching(query, depth))
                hits = [Hit(s.passage, s.score) for s in matching]
            case "hybrid":
                nearest = self._nearest(catalogue, query, depth)
                hits = _fused(nearest, _live(catalogue, self._tables.matching(query, depth)))
            case _:
                raise BadInput(f"search mode {mode!r} is none of hybrid, vector, text")
        return hits[:k]

    def context(
        self,
        query: str,
        *,
        max_tokens: int,
        max_parts: int | None = None,
        mode: SearchMode = "hybrid",
    ) -> list[Part]:
        """The parts that answer `query` best and fit in `max_tokens` together, best first.

        At most `max_parts`, of as many parts as are found; without it of those of the 50 best
        passages.  Empty only when nothing was found. Raises PromptTooLong when even the
        smallest part found does not fit, BadInput for a `max_parts` below 1, and what `search` raises.
        """
        if max_parts is not None and max_parts < 1:
            raise BadInput(f"max_parts must be at least 1, not {max_parts}")
        for _ in range(2):  # a writer may replace parts between the search and their reading
            catalogue = self._catalogue()
            hits, scores = self._in_parts(catalogue, query, max_parts or 1, mode)
            found = list(parts_of(self._tables, catalogue, tuple(scores)))
            if len(found) == len(scores):
                break
        chosen = fitting(found, max_tokens, max_parts)
        if found and not chosen:
            raise PromptTooLong(
                f"no part fits in {counted(max_tokens, 'token')}: the smallest found has"
                f" {min(part.num_tokens for part in found)}; allow more, or use a longer context"
            )
        return [with_hits(part, hits, scores[part.key]) for part in chosen]

    def support(self, question: str) -> Support | None:
        """What speaks for an answer to `question` in the documents.

        None when nothing is found at all, or with an embedder that was not measured.
        """
        nearest = self.search(question, 1, "vector")
        best = self.context(question, max_tokens=sys.maxsize, max_parts=1)
        if not nearest or not best:
            return None
        covered = coverage(question, (passage.index_text for passage in best[0].passages))
        return support_of(self._embedder.name, nearest[0].score, covered)

    # --- audit -------------------------------------------------------------------------------

    @property
    def num_sources(self) -> int:
        """How many documents there are; cheap, unlike `stat`, which measures the folder."""
        return len(self._catalogue().rows)

    def stat(self) -> LibraryStat:
        """The library in numbers."""
        catalogue = self._catalogue()
        return LibraryStat(
            num_sources=len(catalogue.rows),
            num_passages=len(catalogue.part_of),
            num_parts=len(catalogue.passages_of),
            num_tokens=sum(row.num_tokens for row in catalogue.rows.values()),
            size_bytes=_size_on_disk(self._folder),
            embedder=self._embedder.name,
        )

    def check(self) -> None:
        """Audit: every listed passage and part is there once, and no others are.

        Raises StoreError with what is wrong. Not while another process writes.
        """
        catalogue = self._catalogue()
        passages, parts = self._tables.keys()
        for kind, stored, listed in (
            ("passages", passages, catalogue.part_of),
            ("parts", parts, catalogue.passages_of),
        ):
            lost = set(listed) - set(stored)
            stray = set(stored) - set(listed)
            if lost or stray or len(stored) != len(set(stored)):
                raise StoreError(
                    f"{self._folder}: of {len(listed)} {kind} {len(lost)} are lost; {len(stray)}"
                    f" rows are stray, {len(stored) - len(set(stored))} double;"
                    " ingest again into a new folder"
                )

    # --- inside ------------------------------------------------------------------------------

    def _catalogue(self) -> SourceCatalogue:
        """The newest list of documents; read again only when it changed."""
        version = self._tables.version()
        seen = self._seen
        if seen is None or seen.version != version:
            seen = self._seen = catalogue_of(version, self._tables.sources())
        return seen

    def _ingestion(
        self,
        on_progress: Callable[[Progress], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> Ingestion:
        self._sweep()
        return Ingestion(
            self._tables,
            self._catalogue(),
            embedder=self._embedder,
            encode=self._encode,
            cutting=self._config.cutting,
            clock=self._clock,
            on_progress=on_progress,
            cancelled=cancelled,
        )

    def _sweep_if_needed(self) -> None:
        """Sweep unless the counts agree. A writer at work does it itself, who may only read cannot."""
        catalogue = self._catalogue()
        if self._tables.counts() == (len(catalogue.part_of), len(catalogue.passages_of)):
            return
        try:
            with writing(self._folder):
                self._sweep()
        except StoreError:
            return  # readers pass over unlisted rows, so nothing hangs on it

    def _sweep(self) -> None:
        """Drop rows that no document lists. The caller holds the writer lock."""
        catalogue = self._catalogue()
        passages, parts = self._tables.keys()
        self._tables.drop(
            sorted(set(passages) - set(catalogue.part_of)),
            sorted(set(parts) - set(catalogue.passages_of)),
        )

    def _in_parts(
        self, catalogue: SourceCatalogue, query: str, wanted: int, mode: SearchMode
    ) -> tuple[list[Hit], dict[str, float]]:
        """The best passages, and `wanted` parts with their scores, those of the 50 best passages first (a
        deeper search scores otherwise), or all when fewer are found."""
        hits: dict[str, Hit] = {}
        scores: dict[str, float] = {}
        depth, most = _DEPTH, self._tables.counts()[0]
        while True:
            found = self.search(query, depth, mode)
            live = {hit.passage.key: hit for hit in found if hit.passage.key in catalogue.part_of}
            ranked = parts_in_order(((k, h.score) for k, h in live.items()), catalogue.part_of)
            scores = deepened(scores, ranked)
            hits |= {key: hit for key, hit in live.items() if key not in hits}
            if len(scores) >= wanted or depth >= most or len(found) < depth:
                return list(hits.values()), scores
            depth = min(4 * max(depth, wanted), most)  # many of those passages lie in one part

    def _nearest(self, catalogue: SourceCatalogue, query: str, depth: int) -> list[Scored]:
        return _live(catalogue, self._tables.nearest(self._embedder.embed([query])[0], depth))


def _live(catalogue: SourceCatalogue, found: Iterable[Scored]) -> list[Scored]:
    return [scored for scored in found if scored.passage.key in catalogue.part_of]


def _reader(config: LibrarySettings, lately: ParsedLately) -> FileReader:
    return FileReader(config.cutting, lately, config.max_file_bytes)


def _fused(nearest: Sequence[Scored], matching: Sequence[Scored]) -> list[Hit]:
    passages = {scored.passage.key: scored.passage for scored in (*nearest, *matching)}
    rankings = [[(s.passage.key, s.score) for s in ranking] for ranking in (nearest, matching)]
    return [Hit(passages[key], score) for key, score in fuse(rankings)]


def _size_on_disk(folder: Path) -> int:
    """Bytes of all files; one that a writer takes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
