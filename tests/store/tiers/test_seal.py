"""Keys at rest: what a thief of the disk, of the Redis, or a neighbour with a wrong key can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import EXACT
from kdn.errors import BadConfig, CorruptBlock, KdnError
from kdn.store import (
    DictRemote,
    MemoryTier,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    open_store,
    read_key_file,
    read_whole,
)
from kdn.store.block.handle import BytesHandle
from kdn.store.index.tokens import pack_tokens
from kdn.store.tiers.seal import KeyRing, is_sealed
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, block_id, make_block, run_of

pytest.importorskip("cryptography", reason="cryptography is not installed")

RING = KeyRing(bytes(range(32)))
OTHER = KeyRing(bytes(32))
PROMPT = tuple(range(1000, 1256))
BLOCK = make_block(block_id(PROMPT, salt="alice"))
KEY = BLOCK.id.key


def tokens_found(store: Store, salt: str = "alice") -> int:
    return store.match(MODEL, EXACT, salt, PROMPT).num_tokens


def test_sealed_blocks_open_again_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
        store.check()
    with open_store(tmp_path / "kv", ring=RING) as store:
        assert tokens_found(store) == 256
        reader = store.open(BLOCK.id)
        assert reader is not None
        with reader:
            assert bytes(reader.layer(2)) == run_of(BLOCK.id, 2), "one layer, read alone"
            assert bytes(reader.layer(0)) == run_of(BLOCK.id, 0)
        assert store.verify().corrupt == ()
        store.check()


def test_nothing_of_the_text_or_the_kv_lies_open_on_the_disk(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
    bytes_on_disk = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert len(bytes_on_disk) > 50_000
    assert pack_tokens(PROMPT)[:32] not in bytes_on_disk
    for layer in range(3):
        assert run_of(BLOCK.id, layer)[:32] not in bytes_on_disk


def test_without_the_key_blocks_are_not_found_and_not_harmed(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
    for stranger in (None, OTHER):
        with open_store(tmp_path / "kv", ring=stranger) as store:
            assert tokens_found(store) == 0
    with open_store(tmp_path / "kv", ring=RING) as store:
        assert tokens_found(store) == 256


def test_without_the_key_a_lost_catalogue_costs_no_block(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
    for path in (tmp_path / "kv").glob("catalogue.sqlite*"):
        path.unlink()
    with open_store(tmp_path / "kv") as store:
        assert tokens_found(store) == 0
    with open_store(tmp_path / "kv", ring=RING) as store:
        assert tokens_found(store) == 256, "recovered from the sealed header"


def test_open_and_sealed_blocks_live_in_one_store(tmp_path: Path) -> None:
    plain = make_block(block_id([1, 2, 3]))
    with open_store(tmp_path / "kv") as store:
        store.put(plain)
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
        assert tokens_found(store) == 256
        assert store.match(MODEL, EXACT, "", [1, 2, 3]).num_tokens == 3
        assert {salt: len(store.tiers.named("disk").holdings(salt)) for salt in ("", "alice")} == {
            "": 1,
            "alice": 1,
        }
        store.check()


def test_every_flipped_byte_of_a_sealed_file_is_noticed() -> None:
    small = make_block(block_id([1, 2, 3], salt="alice"))
    sealed = RING.seal(small.id.key, "alice", encode_block(small).data)
    assert is_sealed(sealed)
    assert (
        read_whole(small.id.key, RING.open(small.id.key, BytesHandle(sealed))).key == small.id.key
    )
    name_end = 40 + 5 + 16
    for at in [*range(8, name_end), *range(4096, sealed.nbytes, 97), sealed.nbytes - 1]:
        damaged = bytearray(sealed)
        damaged[at] ^= 1
        with pytest.raises(CorruptBlock):
            read_whole(small.id.key, RING.open(small.id.key, BytesHandle(memoryview(damaged))))
    for cut in (0, 100, 4096, sealed.nbytes - 1):
        with pytest.raises(CorruptBlock):
            RING.open(small.id.key, BytesHandle(sealed[:cut]))


def test_a_sealed_block_under_anothers_name_does_not_open() -> None:
    sealed = RING.seal(KEY, "alice", encode_block(BLOCK).data)
    stranger = block_id([7]).key
    with pytest.raises(CorruptBlock):
        RING.open(stranger, BytesHandle(sealed))


def test_a_tenant_may_have_a_key_of_its_own_and_take_it_away() -> None:
    owned = KeyRing(RING.master, {"alice": b"k" * 32})
    sealed = owned.seal(KEY, "alice", encode_block(BLOCK).data)
    assert read_whole(KEY, owned.open(KEY, BytesHandle(sealed))).key == KEY
    with pytest.raises(CorruptBlock, match="does not open"):
        read_whole(KEY, RING.open(KEY, BytesHandle(sealed)))


def test_what_leaves_for_a_remote_is_sealed_note_and_all() -> None:
    remote = DictRemote()

    def engine(ring: KeyRing | None) -> Store:
        settings = RemoteSettings(poll_s=0)
        tier = RemoteTier(remote, settings, SystemClock(), NoTrace(), ring=ring)
        return Store([MemoryTier(10**9, NoTrace())], far=[tier])

    with engine(RING) as store:
        store.put(BLOCK)
        assert store.flush(10)
    (listed,) = remote.changes().added
    data = remote.read(KEY, 0, 10**9)
    assert pack_tokens(PROMPT)[:32] not in listed.note + data
    assert run_of(BLOCK.id, 0)[:32] not in data
    with engine(RING) as store:
        assert tokens_found(store) == 256
        reader = store.open(BLOCK.id)
        assert reader is not None
        with reader:
            assert bytes(reader.layer(1)) == run_of(BLOCK.id, 1)
    for stranger in (None, OTHER):
        with engine(stranger) as store:
            assert tokens_found(store) == 0


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'master = "{"00" * 32}"\n[tenants]\nalice = "{"11" * 32}"\n')
    path.chmod(0o600)
    assert read_key_file(path).tenants == {"alice": b"\x11" * 32}
    path.chmod(0o644)
    with pytest.raises(BadConfig, match="chmod 600"):
        read_key_file(path)
    for text in ('master = "00"', 'master = "zz"', "", f'master = "{"00" * 32}"\nmistress = 1'):
        bad = tmp_path / "bad.toml"
        bad.write_text(text)
        bad.chmod(0o600)
        with pytest.raises(KdnError):
            read_key_file(bad)
