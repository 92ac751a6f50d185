"""Bundles: out of one store and into another, and what is no bundle refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kdn.core import BlockKey
from kdn.errors import BadInput
from kdn.store import Store, encode_block, open_store
from kdn.store.admin.bundle import export_blocks, import_blocks, read_bundle
from kdn.store.admin.manage import Done
from tests.store.helpers import block_id, make_block, run_of

IDS = [block_id([number] * 64, salt=salt) for number, salt in enumerate(("alice", "bob"))]
KEYS = [one.key for one in IDS]
BLOCKS = [encode_block(make_block(one)) for one in IDS]


@contextmanager
def filled() -> Iterator[Store]:
    with open_store(None) as store:
        for one in IDS:
            store.put(make_block(one))
        yield store


def bundle(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    file.seek(0)
    return file


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = len(data), kind, "/etc/passwd"
    return found, data


def test_what_goes_out_comes_in_again() -> None:
    file = io.BytesIO()
    with filled() as store:
        done = export_blocks(store, [*KEYS, BlockKey("0" * 64)], file)
    assert done == Done(2, sum(one.size_bytes for one in BLOCKS), 1)
    file.seek(0)
    with open_store(None) as store:
        assert import_blocks(store, file) == Done(2, done.size_bytes)
        reader = store.open(IDS[1])
        assert reader is not None
        with reader:
            assert bytes(reader.layer(2)) == run_of(IDS[1], 2)


def test_only_one_tenants_blocks_are_taken_where_that_is_asked() -> None:
    file = io.BytesIO()
    with filled() as store:
        export_blocks(store, KEYS, file)
    file.seek(0)
    with open_store(None) as store:
        assert import_blocks(store, file, "alice") == Done(1, BLOCKS[0].size_bytes, 1)
        assert [entry.key for entry in store.index.entries()] == [KEYS[0]]


def test_a_damaged_block_is_counted_and_the_others_come() -> None:
    damaged = bytearray(BLOCKS[0].data)
    damaged[-5000] ^= 1
    file = bundle(
        member(f"blocks/{KEYS[0]}.kdn", bytes(damaged)),
        member(f"blocks/{KEYS[1]}.kdn", bytes(BLOCKS[1].data)),
    )
    found = [block.key if block else None for block in read_bundle(file)]
    assert found == [None, KEYS[1]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../etc/cron.d/x", tarfile.REGTYPE),
        (f"blocks/{KEYS[0]}.kdn", tarfile.SYMTYPE),
        (f"blocks/{KEYS[0]}.kdn", tarfile.LNKTYPE),
        (f"blocks/{KEYS[0]}.kdn", tarfile.FIFOTYPE),
        (f"blocks/{KEYS[0]}.kdn", tarfile.DIRTYPE),
        (f"blocks/{KEYS[0].upper()}.kdn", tarfile.REGTYPE),
        (f"/blocks/{KEYS[0]}.kdn", tarfile.REGTYPE),
        (f"blocks/{KEYS[0]}.kdn\n", tarfile.REGTYPE),
    ],
)
def test_anything_but_a_block_is_refused(name: str, kind: bytes) -> None:
    with pytest.raises(BadInput, match="a bundle holds blocks only"):
        list(read_bundle(bundle(member(name, b"", kind))))


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\1" * 511])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match="no bundle, or it was cut short"):
        list(read_bundle(io.BytesIO(data)))


def test_a_bundle_that_was_cut_short_is_refused_after_what_came_whole() -> None:
    file = io.BytesIO()
    with filled() as store:
        export_blocks(store, KEYS, file)
    cut = io.BytesIO(file.getvalue()[: BLOCKS[0].size_bytes + 5000])
    with open_store(None) as store:
        with pytest.raises(BadInput, match="cut short"):
            import_blocks(store, cut)
        assert [entry.key for entry in store.index.entries()] == [KEYS[0]]
