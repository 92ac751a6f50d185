"""From a path to a document: bounds, the parser process, and what was parsed a moment ago."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kdn.errors import DocumentError
from kdn.rag.cut import Cutting
from kdn.rag.documents import ParsedDocument
from kdn.rag.files import read_bytes
from kdn.rag.parse import PARSERS, parser_for
from kdn.rag.parse.process import ParserProcess

__all__ = ["FileReader", "ParsedLately", "RawFile", "digest_of"]

_CUT_VERSION = "2"
"""Raised when parsing or cutting changes, so that unchanged files are taken in again."""


def digest_of(data: bytes, cutting: Cutting) -> str:
    """Names the bytes of a document and the way in which they are cut."""
    how = f"{_CUT_VERSION} {cutting.passage_tokens} {cutting.part_tokens} "
    return hashlib.blake2b(how.encode() + data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class RawFile:
    """A file that was read and is not parsed yet."""

    path: Path
    named: bool
    data: bytes
    digest: str


class ParsedLately:
    """The newest documents, so that an ingest need not parse again what its survey parsed."""

    def __init__(self, max_chars: int = 16_000_000) -> None:
        self._max_chars = max_chars
        self._num_chars = 0
        self._documents: OrderedDict[tuple[Path, str], ParsedDocument] = OrderedDict()
        self.refusals: dict[tuple[Path, str], str] = {}
        """Why files could not be parsed; each is asked for once."""

    def add(self, file: RawFile, document: ParsedDocument) -> None:
        """Hold a document; the oldest go when there are too many characters."""
        self.take(file)
        self._documents[file.path, file.digest] = document
        self._num_chars += len(document.text)
        while self._num_chars > self._max_chars:
            _, oldest = self._documents.popitem(last=False)
            self._num_chars -= len(oldest.text)

    def take(self, file: RawFile) -> ParsedDocument | None:
        """Hand the document of a file over, if it is here and the file is the same."""
        document = self._documents.pop((file.path, file.digest), None)
        self._num_chars -= len(document.text) if document is not None else 0
        return document


class FileReader:
    """Reads and parses files, one after the other; a `with` block ends its parser process."""

    def __init__(self, cutting: Cutting, lately: ParsedLately, max_file_bytes: int) -> None:
        self._cutting = cutting
        self._lately = lately
        self._max_file_bytes = max_file_bytes
        self._parsers = ParserProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parsers.close()

    def read(self, path: Path, *, named: bool) -> RawFile:
        """A file's bytes.

        Raises DocumentError when it is empty, too large, unreadable, of no kind that is taken from
        folders, or has a name that is not UTF-8.
        """
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DocumentError(f"{path}: the name is not UTF-8; rename it") from error
        if not named and path.suffix.lower() not in PARSERS:
            parser_for(path, _head(path), named=named)  # refuses a film before it is read
        data = read_bytes(path, self._max_file_bytes)
        return RawFile(path, named, data, digest_of(data, self._cutting))

    def parse(self, file: RawFile, *, hold: bool = False) -> ParsedDocument:
        """The document in a file; `hold` it where it is parsed again soon. Raises DocumentError."""
        lately, key = self._lately, (file.path, file.digest)
        if (refusal := lately.refusals.pop(key, None)) is not None:
            raise DocumentError(refusal)
        try:
            document = lately.take(file) or self._parsers.parse(
                file.path, file.data, named=file.named
            )
        except DocumentError as error:
            if hold:
                lately.refusals[key] = str(error)
            raise
        if hold:
            lately.add(file, document)
        return document


def _head(path: Path) -> bytes:
    """Its first bytes; none of a file that cannot be read, as its reading will say."""
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""
