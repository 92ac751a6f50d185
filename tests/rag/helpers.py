"""Small things the library's tests share: a tokenizer of words and a library without weights."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdn.clock import ManualClock
from kdn.rag import Cutting, Embedder, Library, LibrarySettings, Vectors
from kdn.rag.embed import scaled

_WORD = re.compile(r"\w+|[^\w\s]")
_LETTERS = re.compile(r"\w+")


class HashedWords:
    """Counts of words, each hashed to a place: finds texts that share words, knows no meaning."""

    def __init__(self, dimension: int = 256) -> None:
        self._dimension = dimension

    @property
    def name(self) -> str:
        return f"hashed-words-{self._dimension}"

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _LETTERS.findall(text.lower()):
                row[zlib.crc32(word.encode()) % self._dimension] += 1.0
        return scaled(vectors)


def words(text: str) -> list[int]:
    """One token a word or sign: numbers in tests can be counted by hand."""
    return [zlib.crc32(word.encode()) for word in _WORD.findall(text)]


def small_library(
    folder: Path,
    embedder: Embedder | None = None,
    *,
    passage_tokens: int = 20,
    part_tokens: int = 60,
) -> Library:
    """Passages of 20 words in parts of 60, embedded by hashing words."""
    config = LibrarySettings(Cutting(passage_tokens, part_tokens))
    return Library.open(folder, embedder or HashedWords(), words, ManualClock(), config)


def pdf(*lines: str) -> bytes:
    """A PDF of one page with these lines of text, or an empty page: a scan without its picture."""
    shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
    stream = f"BT /F1 12 Tf 72 720 Td {shown}ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
            b" /Resources << /Font << /F1 5 0 R >> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(data)
    data += b"xref\n0 6\n0000000000 65535 f \n" + table
    return data + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start
