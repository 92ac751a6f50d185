"""The one gate to LanceDB: three tables and what may be asked of them. Its errors end here.

passages   what is searched: vector, full text, metadata       written first
parts      what enters prompts, as text                        written second
sources    a row a document, listing its passages and parts    written last

A document is in the library exactly when its sources row is there.  Rows that no sources row lists
are remains of an interrupted write: readers pass over them, the next writer sweeps them out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kdn.errors import MissingExtra, NoSpace, StoreError
from kdn.machine.files import make_tree_private
from kdn.rag.cut import CutPart, Passage
from kdn.rag.embed import Vectors

__all__ = ["Scored", "SourceRow", "StoredPart", "Tables", "gate", "need_extra"]

_KEYS_A_QUERY = 500
_OLD_VERSIONS = timedelta(minutes=10)
"""How long a reader may go on with what it saw before a write."""
_NEEDED = ("docutils", "lancedb", "markdown_it", "pyarrow", "pypdf", "selectolax")


def need_extra() -> None:
    """Raises MissingExtra, naming what a library of documents needs and is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"working with documents needs {', '.join(missing)}; run: pip install 'kdn[rag]'"
        )


@dataclass(frozen=True)
class SourceRow:
    """A document as the library lists it."""

    source: str
    title: str
    digest: str
    """Hash of the file's bytes and of how they were cut."""
    size_bytes: int
    num_tokens: int
    ingested_at: float
    """Seconds since 1970."""
    passages: tuple[str, ...]
    """Keys in the order of the document."""
    parts: tuple[str, ...]
    part_sizes: tuple[int, ...]
    """How many of the passages, in order, belong to each part."""


@dataclass(frozen=True)
class StoredPart:
    """A part as it was written."""

    key: str
    source: str
    title: str
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Scored:
    """A passage that a search found. Higher scores are better."""

    passage: Passage
    score: float


class Tables:
    """The tables in one folder. Reads see the newest write of any process."""

    def __init__(self, folder: Path, dimension: int) -> None:
        with gate(f"opening {folder}"):
            database = _connect(folder)
            self._dimension = dimension
            existing = set(database.list_tables().tables)
            self._passages, self._parts, self._sources = (
                database.open_table(name)
                if name in existing
                else database.create_table(name, schema=schema, exist_ok=True)
                for name, schema in _schemas(dimension).items()
            )
        if not existing:
            make_tree_private(folder)

    # --- writing ---------------------------------------------------------------------------

    def add_passages(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        """Write passages with their vectors [passages, dimension]. They are not live yet."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
        columns = {
            "key": [p.key for p in passages],
            "source": [p.source for p in passages],
            "title": [p.title for p in passages],
            "headings": [list(p.headings) for p in passages],
            "text": [p.text for p in passages],
            "num_tokens": [p.num_tokens for p in passages],
            "index_text": [p.index_text for p in passages],
            "vector": pa.FixedSizeListArray.from_arrays(flat, self._dimension),
        }
        with gate("writing passages"):
            self._passages.add(pa.table(columns, schema=_schemas(self._dimension)["passages"]))
            self._index_words()

    def add_parts(self, source: str, title: str, parts: Sequence[CutPart]) -> None:
        """Write parts of one document. They are not live yet."""
        import pyarrow as pa

        rows = [
            {
                "key": p.key,
                "source": source,
                "title": title,
                "text": p.text,
                "num_tokens": p.num_tokens,
            }
            for p in parts
        ]
        with gate("writing parts"):
            self._parts.add(pa.Table.from_pylist(rows, schema=_schemas(self._dimension)["parts"]))

    def commit(self, rows: Sequence[SourceRow]) -> None:
        """Make documents live, in place of what their sources listed before: all or none."""
        import pyarrow as pa

        fields = ("source", "title", "digest", "size_bytes", "num_tokens", "ingested_at")
        listed = [
            {name: getattr(row, name) for name in fields}
            | {name: list(getattr(row, name)) for name in ("passages", "parts", "part_sizes")}
            for row in rows
        ]
        table = pa.Table.from_pylist(listed, schema=_schemas(self._dimension)["sources"])
        with gate("committing documents"):
            merge = self._sources.merge_insert("source").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(table)

    def retire(self, sources: Sequence[str]) -> None:
        """Take documents out. Their rows stay, unlisted, until dropped."""
        with gate("removing documents"):
            for some in _batches(sources):
                self._sources.delete(f"source IN ({_quoted(some)})")

    def drop(self, passages: Sequence[str], parts: Sequence[str]) -> None:
        """Delete rows by key."""
        with gate("dropping rows"):
            for some in _batches(passages):
                self._passages.delete(f"key IN ({_quoted(some)})")
            for some in _batches(parts):
                self._parts.delete(f"key IN ({_quoted(some)})")

    def refresh_index(self) -> None:
        """Take new rows into the full-text index and fold small files together."""
        with gate("indexing"):
            if not self._passages.count_rows():
                return
            self._index_words()
            for table in (self._passages, self._parts, self._sources):
                table.optimize(cleanup_older_than=_OLD_VERSIONS)

    def _index_words(self) -> None:
        """Make the full-text index unless there is one. Rows written later are searched beside it.

        It is there before the first commit: a run that ends early does not come to `refresh_index`.
        """
        from lancedb.index import FTS

        if not self._passages.list_indices():
            self._passages.create_index("index_text", config=FTS())

    # --- reading ---------------------------------------------------------------------------

    def version(self) -> int:
        """Changes with every commit or retirement, of any process."""
        with gate("reading the list of documents"):
            return int(self._sources.version)

    def sources(self) -> list[SourceRow]:
        """Every document, by the order of its source."""
        with gate("reading the list of documents"):
            rows = self._all(self._sources)
        return sorted(map(_source_row, rows), key=lambda row: row.source)

    def counts(self) -> tuple[int, int]:
        """How many passage rows and part rows there are, live or not."""
        with gate("counting rows"):
            return int(self._passages.count_rows()), int(self._parts.count_rows())

    def keys(self) -> tuple[list[str], list[str]]:
        """The keys of all passage rows and all part rows, live or not."""
        with gate("reading keys"):
            passages = self._all(self._passages, ["key"])
            parts = self._all(self._parts, ["key"])
        return [row["key"] for row in passages], [row["key"] for row in parts]

    def passages(self, keys: Sequence[str]) -> dict[str, Passage]:
        """The passages of these keys, as far as they are there."""
        found: dict[str, Passage] = {}
        with gate("reading passages"):
            for some in _batches(keys):
                query = self._passages.search().where(f"key IN ({_quoted(some)})")
                rows = query.select(_PASSAGE_FIELDS).limit(len(some)).to_list()
                found.update((row["key"], _passage(row)) for row in rows)
        return found

    def parts(self, keys: Sequence[str]) -> dict[str, StoredPart]:
        """The parts of these keys, as far as they are there."""
        found: dict[str, StoredPart] = {}
        with gate("reading parts"):
            for some in _batches(keys):
                query = self._parts.search().where(f"key IN ({_quoted(some)})")
                found.update(
                    (row["key"], StoredPart(**row)) for row in query.limit(len(some)).to_list()
                )
        return found

    def nearest(self, vector: Vectors, count: int) -> list[Scored]:
        """Passages by cosine similarity to `vector` [dimension], compared with all of them."""
        with gate("searching vectors"):
            query = self._passages.search(vector, vector_column_name="vector").distance_type(
                "cosine"
            )
            rows = query.select([*_PASSAGE_FIELDS, "_distance"]).limit(count).to_list()
        return _ordered(Scored(_passage(row), 1.0 - row["_distance"]) for row in rows)

    def matching(self, words: str, count: int) -> list[Scored]:
        """Passages that share words with `words`, by BM25."""
        from lancedb.query import MatchQuery

        with gate("searching text"):
            if not self._passages.list_indices():
                return []  # nothing was ever ingested
            query = self._passages.search(MatchQuery(words, "index_text"), query_type="fts")
            rows = query.select([*_PASSAGE_FIELDS, "_score"]).limit(count).to_list()
        return _ordered(Scored(_passage(row), row["_score"]) for row in rows)

    def _all(self, table: Any, columns: list[str] | None = None) -> list[dict[str, Any]]:
        query = table.search().limit(max(1, table.count_rows()))
        rows: list[dict[str, Any]] = (query.select(columns) if columns else query).to_list()
        return rows


_PASSAGE_FIELDS = ["key", "source", "title", "headings", "text", "num_tokens"]


def _passage(row: dict[str, Any]) -> Passage:
    fields = {name: row[name] for name in _PASSAGE_FIELDS}
    return Passage(**fields | {"headings": tuple(fields["headings"])})


def _source_row(row: dict[str, Any]) -> SourceRow:
    tuples = {name: tuple(row[name]) for name in ("passages", "parts", "part_sizes")}
    return SourceRow(**(row | tuples))


def _ordered(found: Iterable[Scored]) -> list[Scored]:
    """Best first; equals by key, so that the order never depends on how rows lie on disk."""
    return sorted(found, key=lambda scored: (-scored.score, scored.passage.key))


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), _KEYS_A_QUERY):
        yield keys[start : start + _KEYS_A_QUERY]


def _quoted(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _connect(folder: Path) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # its only switch, read when it is imported
    import lancedb

    return lancedb.connect(folder, read_consistency_interval=timedelta(0))


def _schemas(dimension: int) -> dict[str, Any]:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    passages = {
        "key": pa.string(),
        "source": pa.string(),
        "title": pa.string(),
        "headings": texts,
        "text": pa.string(),
        "num_tokens": pa.int64(),
        "index_text": pa.string(),
        "vector": pa.list_(pa.float32(), dimension),
    }
    parts = {
        "key": pa.string(),
        "source": pa.string(),
        "title": pa.string(),
        "text": pa.string(),
        "num_tokens": pa.int64(),
    }
    sources = {
        "source": pa.string(),
        "title": pa.string(),
        "digest": pa.string(),
        "size_bytes": pa.int64(),
        "num_tokens": pa.int64(),
        "ingested_at": pa.float64(),
        "passages": texts,
        "parts": texts,
        "part_sizes": pa.list_(pa.int64()),
    }
    tables = {"passages": passages, "parts": parts, "sources": sources}
    return {name: pa.schema(list(fields.items())) for name, fields in tables.items()}


@contextmanager
def gate(doing: str) -> Iterator[None]:
    """Errors of LanceDB, Arrow and the disk become ours, with the cause kept."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        text = str(error)
        if any(
            said in text for said in ("No space left", "os error 28", "os error 27", "os error 122")
        ):
            raise NoSpace(
                f"library: {doing}: the disk is full; free some space and try again"
            ) from error
        raise StoreError(f"library: {doing} failed: {_reason(text)}") from error


def _reason(text: str) -> str:
    """What a library says, less the places in its own source that it adds."""
    said = re.split(r",? ?/[^ ,]*\.rs:\d+|\n", text)[0].strip(" :,")
    return f"{said}; check the folder's rights, or choose another folder"
