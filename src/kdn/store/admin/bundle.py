"""Blocks in one portable file: a tar archive of encoded blocks, readable by any machine's kdn.

The names inside are only names: nothing is unpacked to a path, and every block is checked whole
before it is stored.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Self

from kdn.core import BlockKey
from kdn.errors import BadInput, CorruptBlock, NoSpace
from kdn.machine.text import counted
from kdn.store.admin.manage import Done, whole_block
from kdn.store.block.format import (
    MAX_BLOCK_BYTES,
    PREAMBLE_BYTES,
    EncodedBlock,
    decode_header,
    header_bytes,
)
from kdn.store.block.reader import check_whole
from kdn.store.store import Store

__all__ = ["export_blocks", "import_blocks", "read_bundle"]

_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_MAX_HEADER_BYTES = 64 << 10
"""Of a pax header or a long name, which are read whole."""
_NAME = re.compile(r"blocks/([0-9a-f]{64})\.kdn")


def export_blocks(store: Store, keys: Iterable[BlockKey], to: IO[bytes]) -> Done:
    """Write these blocks to a stream; those that are not whole are left out, and counted."""
    blocks = size_bytes = missing = 0
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for key in keys:
            block = whole_block(store, key)
            if block is None:
                missing += 1
                continue
            member = tarfile.TarInfo(f"blocks/{key}.kdn")
            member.size = block.size_bytes
            archive.addfile(member, io.BytesIO(block.data))
            blocks, size_bytes = blocks + 1, size_bytes + block.size_bytes
    return Done(blocks, size_bytes, missing)


def import_blocks(store: Store, source: IO[bytes], salt: str | None = None) -> Done:
    """Store every block of a bundle, or those of one tenant; damaged ones are counted missing.

    Raises BadInput for what is no bundle, NoSpace when the store is full: how many were stored is told.
    """
    blocks = size_bytes = missing = 0
    for block in read_bundle(source):
        if block is None or salt not in (None, block.header.id.salt):
            missing += 1
            continue
        try:
            store.put_encoded(block)
        except NoSpace as error:
            before = counted(blocks, "block")
            raise NoSpace(f"{error}; {before} of the bundle were stored before") from error
        blocks, size_bytes = blocks + 1, size_bytes + block.size_bytes
    return Done(blocks, size_bytes, missing)


class _Member(tarfile.TarInfo):
    """A member that is a block, or a header of a size that a name may have."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises ReadError for a header whose own body would fill the memory."""
        found = super().frombuf(buf, encoding, errors)
        if found.type not in _FILE_TYPES and found.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {found.size} bytes")
        if not 0 <= found.size <= MAX_BLOCK_BYTES:
            raise tarfile.ReadError(f"a member of {found.size} bytes")
        return found


def read_bundle(source: IO[bytes]) -> Iterator[EncodedBlock | None]:
    """Each block of a bundle, checked whole; None for one that is damaged.

    No more memory is taken than a block's own checked header says, whatever a member's declared size is.
    Raises BadInput for anything but blocks.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                found = _NAME.fullmatch(member.name)
                if found is None or member.type not in _FILE_TYPES or member.issparse():
                    raise BadInput(f"a bundle holds blocks only, this one holds {member.name!r}")
                file = archive.extractfile(member)
                assert file is not None
                yield _checked(BlockKey(found[1]), file, member.size)
    except (tarfile.TarError, UnicodeError, EOFError) as error:
        raise BadInput(f"this is no bundle, or it was cut short: {error}") from error


def _checked(key: BlockKey, file: IO[bytes], size_bytes: int) -> EncodedBlock | None:
    """The block, or None: its header is checked before its body is read."""
    try:
        first = file.read(min(PREAMBLE_BYTES, size_bytes))
        wanted = header_bytes(memoryview(first))
        if wanted > size_bytes:
            return None
        first += file.read(wanted - len(first))
        decode_header(memoryview(first), key, size_bytes)
        return check_whole(key, memoryview(first + file.read(size_bytes - wanted)))
    except CorruptBlock:
        return None
