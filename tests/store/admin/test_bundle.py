"""Bundles: out of one store and into another, and what is no bundle refused."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.core import BlockKey
from kdn.errors import BadInput
from kdn.store import KeyRing, Store, encode_block, open_store
from kdn.store.admin.bundle import export_blocks, import_blocks, read_bundle
from kdn.store.admin.manage import Done, copy
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


def test_a_sealed_file_that_was_cut_is_left_out_and_the_others_go(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    folder, ring = tmp_path / "kv", KeyRing(bytes(range(32)))
    with open_store(folder, ring=ring) as store:
        for one in IDS:
            store.put(make_block(one))
    os.truncate(folder / "blocks" / KEYS[0][:2] / f"{KEYS[0]}.kdn", 5000)
    with open_store(folder, ring=ring) as store:
        wanted = Done(1, BLOCKS[1].size_bytes, 1)
        assert export_blocks(store, KEYS, io.BytesIO()) == wanted
        assert copy(store, KEYS, "memory") == wanted


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


# --- hostile archives ---


def number(value: int, length: int) -> bytes:
    """As tar writes numbers: octal, or base 256 where they are too large for it."""
    if value < 8 ** (length - 1):
        return b"%0*o" % (length - 1, value) + b"\0"
    return b"\x80" + value.to_bytes(length - 1, "big")


def header(name: str, size: int, kind: bytes = b"0", sparse: int | None = None) -> bytes:
    found = tarfile.TarInfo(name)
    found.size = min(size, 512)
    raw = bytearray(found.tobuf(tarfile.GNU_FORMAT))
    raw[124:136], raw[156:157] = number(size, 12), kind
    if sparse is not None:
        raw[386:398], raw[398:410] = number(0, 12), number(512, 12)
        raw[410:482], raw[482:483] = bytes(72), b"\0"
        raw[483:495] = number(sparse, 12)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


NAME = f"blocks/{KEYS[0]}.kdn"
FRONT = bytes(BLOCKS[0].data[:4096])
BOMBS = {
    "a sparse member of 3 GiB": header(NAME, 512, b"S", 3 << 30) + b"A" * 512,
    "a member of 4 GiB that is not there": header(NAME, 1 << 32) + FRONT,
    "a member of 8 EiB": header(NAME, 1 << 62) + FRONT,
    "a pax header of 3 GiB": header("x", 3 << 30, b"x") + b"A" * 512,
    "a long name of 3 GiB": header("x", 3 << 30, b"L") + b"A" * 512,
    "a pax header that says sparse": header("x", 512, b"x")
    + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n30 GNU.sparse.realsize=9999999\n".ljust(
        512, b"\0"
    )
    + header(NAME, 512)
    + b"1\n0\n0\n".ljust(512, b"\0"),
    "a negative size": header(NAME, 0)[:124] + b"\xff" * 12 + header(NAME, 0)[136:],
}


@pytest.mark.parametrize("what", BOMBS)
def test_declared_sizes_take_no_memory(what: str) -> None:
    """Some two kilobytes each: refused, or counted as damaged, for less than 30 MB."""
    tracemalloc.start()
    with suppress(BadInput), open_store(None) as store:
        done = import_blocks(store, io.BytesIO(BOMBS[what] + bytes(1024)))
        assert (done.blocks, done.missing) == (0, 1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 30 << 20


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=20)), max_size=3),
    st.integers(0, 60_000),
)
def test_a_changed_bundle_gives_whole_blocks_or_none(
    changes: list[tuple[int, bytes]], cut: int
) -> None:
    file = bundle(*(member(f"blocks/{one.key}.kdn", bytes(one.data)) for one in BLOCKS))
    data = bytearray(file.getvalue())
    for at, new in changes:
        data[at : at + len(new)] = new
    try:
        found = list(read_bundle(io.BytesIO(bytes(data[: max(cut, 20_000)]))))
    except BadInput:
        return
    for block in found:
        assert block is None or bytes(block.data) in [bytes(one.data) for one in BLOCKS]
