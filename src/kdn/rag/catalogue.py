"""What is live: a snapshot of the sources table, turned round so that keys can be looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdn.machine.files import expanded
from kdn.machine.text import counted
from kdn.rag.results import Part
from kdn.rag.tables import SourceRow, Tables

__all__ = ["SourceCatalogue", "catalogue_of", "named", "parts_of"]


@dataclass(frozen=True)
class SourceCatalogue:
    """All documents at one version of the sources table. A key not in here is not live."""

    version: int
    rows: Mapping[str, SourceRow]
    """By source, in the order of sources."""
    part_of: Mapping[str, str]
    """Passage key to the key of its part."""
    passages_of: Mapping[str, tuple[str, ...]]
    """Part key to the keys of its passages, in order."""


def catalogue_of(version: int, rows: Sequence[SourceRow]) -> SourceCatalogue:
    """Turn the rows round. Raises ValueError when a row's sizes do not add up to its passages."""
    passages_of: dict[str, tuple[str, ...]] = {}
    for row in rows:
        start = 0
        for part, size in zip(row.parts, row.part_sizes, strict=True):
            passages_of[part] = row.passages[start : start + size]
            start += size
        if start != len(row.passages):
            raise ValueError(
                f"{row.source}: {counted(len(row.passages), 'passage')}, its parts hold {start}"
            )
    part_of = {passage: part for part, passages in passages_of.items() for passage in passages}
    return SourceCatalogue(version, {row.source: row for row in rows}, part_of, passages_of)


def named(catalogue: SourceCatalogue, source: str) -> list[str]:
    """The documents of that name, or of the file at that path, or under that folder."""
    if source in catalogue.rows:
        return [source]
    path = expanded(source).resolve().as_posix()
    return [name for name in catalogue.rows if name == path or name.startswith(f"{path}/")]


def parts_of(tables: Tables, catalogue: SourceCatalogue, keys: Sequence[str]) -> Iterator[Part]:
    """The parts of these keys, in this order, as far as they are still there."""
    stored = tables.parts(keys)
    wanted = [passage for key in keys for passage in catalogue.passages_of[key]]
    passages = tables.passages(wanted)
    for key in keys:
        inside = catalogue.passages_of[key]
        if key in stored and all(passage in passages for passage in inside):
            part, held = stored[key], tuple(passages[passage] for passage in inside)
            yield Part(key, part.source, part.title, part.text, part.num_tokens, passages=held)
