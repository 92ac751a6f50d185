"""Keys at rest: what a thief of the disk, of the Redis, or a neighbour with a wrong key can do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import EXACT
from kdn.core.blocks import pack_tokens
from kdn.errors import BadConfig, CorruptBlock, ForeignStore, KdnError
from kdn.store import (
    MemoryTier,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    open_store,
    read_key_file,
    read_whole,
)
from kdn.store.block.reader import BytesHandle
from kdn.store.tiers.seal import KeyRing, is_private, is_sealed
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, block_id, make_block, run_of
from tests.store.twins import DictRemote

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


@pytest.mark.parametrize("catalogue", ["whole", "lost"])
@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize(("ring", "words"), [(None, "is sealed: give"), (OTHER, "another key")])
def test_a_process_without_the_key_is_refused_and_harms_nothing(
    tmp_path: Path, ring: KeyRing | None, words: str, age: str, catalogue: str
) -> None:
    """A folder of an older kdn does not say that it is sealed: its blocks do."""
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
    if age == "old":
        (tmp_path / "kv/seal.json").unlink()
    if catalogue == "lost":
        for path in (tmp_path / "kv").glob("catalogue.sqlite*"):
            path.unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "kv/blocks").rglob("*.kdn")}
    for _ in range(2):
        with pytest.raises(ForeignStore, match=words):
            open_store(tmp_path / "kv", ring=ring)
    assert {path: path.read_bytes() for path in (tmp_path / "kv/blocks").rglob("*.kdn")} == before
    with open_store(tmp_path / "kv", ring=RING) as store:
        assert tokens_found(store) == 256
        store.check()


@pytest.mark.parametrize("age", ["new", "old"])
def test_a_folder_of_plain_blocks_takes_no_sealed_ones(tmp_path: Path, age: str) -> None:
    with open_store(tmp_path / "kv") as store:
        store.put(BLOCK)
    if age == "old":
        (tmp_path / "kv/seal.json").unlink()
    with pytest.raises(ForeignStore, match="not sealed: seal blocks in another folder"):
        open_store(tmp_path / "kv", ring=RING)
    with open_store(tmp_path / "kv") as store:
        assert tokens_found(store) == 256


def test_an_empty_folder_is_what_its_first_process_makes_of_it(tmp_path: Path) -> None:
    open_store(tmp_path / "kv", ring=RING).close()
    with pytest.raises(ForeignStore, match="is sealed"):
        open_store(tmp_path / "kv")


def test_a_plain_block_in_a_sealed_store_is_damage(tmp_path: Path) -> None:
    """Somebody overwrites a sealed file with the same block unsealed: it would be read as ours."""
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
        store.tiers.named("memory").drop(KEY)
        (file,) = (tmp_path / "kv/blocks").rglob("*.kdn")
        file.write_bytes(encode_block(BLOCK).data)
        assert store.open(BLOCK.id) is None
        assert (store.stat().corrupt, store.stat().misses) == (1, 1)
        store.put(BLOCK)
        assert is_sealed(file.read_bytes())
        store.check()
    with open_store(tmp_path / "other", ring=RING):
        pass
    shutil.copytree(tmp_path / "kv/blocks", tmp_path / "other/blocks", dirs_exist_ok=True)
    (copy,) = (tmp_path / "other/blocks").rglob("*.kdn")
    copy.write_bytes(encode_block(BLOCK).data)
    with open_store(tmp_path / "other", ring=RING) as store:
        assert tokens_found(store) == 0, "nor is it taken in at opening"


def test_one_damaged_seal_does_not_shut_an_old_folder(tmp_path: Path) -> None:
    second = make_block(block_id([1, 2, 3], salt="alice"))
    with open_store(tmp_path / "kv", ring=RING) as store:
        store.put(BLOCK)
        store.put(second)
    (tmp_path / "kv/seal.json").unlink()
    file = tmp_path / "kv/blocks" / KEY[:2] / f"{KEY}.kdn"
    data = bytearray(file.read_bytes())
    data[42] ^= 1
    file.write_bytes(data)
    with open_store(tmp_path / "kv", ring=RING) as store:
        assert store.open(BLOCK.id) is None
        assert store.stat().corrupt == 1
        assert store.open(second.id) is not None


def test_a_seal_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    open_store(tmp_path / "kv", ring=RING).close()
    for text in ("", "null", '{"kdn_seal": "yes"}', "[" * 5000):
        (tmp_path / "kv/seal.json").write_text(text)
        with pytest.raises(ForeignStore, match="remove it, then the blocks say"):
            open_store(tmp_path / "kv", ring=RING)


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
        assert store.flush(60)
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


@pytest.mark.parametrize(
    ("mode", "uid", "private"),
    [
        (0o600, 1000, True),
        (0o400, 1000, True),
        (0o440, 1000, False),  # of our own file we say who reads it: nobody else
        (0o440, 0, True),  # a Secret of Kubernetes, which its fsGroup lends us
        (0o640, 0, True),
        (0o660, 0, False),
        (0o450, 0, False),
        (0o444, 0, False),
        (0o441, 0, False),
    ],
)
def test_a_key_file_is_ours_alone_or_lent_to_a_group_of_ours(
    mode: int, uid: int, private: bool
) -> None:
    regular_file = 0o100000
    assert is_private(regular_file | mode, uid, euid=1000) is private


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'master = "{"00" * 32}"\n[tenants]\nalice = "{"11" * 32}"\n')
    path.chmod(0o600)
    assert read_key_file(path).tenants == {"alice": b"\x11" * 32}
    for mode in (0o640, 0o644):
        path.chmod(mode)
        with pytest.raises(BadConfig, match="others may read it: chmod 600"):
            read_key_file(path)
    path.chmod(0o600)
    for text in ('master = "00"', 'master = "zz"', "", f'master = "{"00" * 32}"\nmistress = 1'):
        bad = tmp_path / "bad.toml"
        bad.write_text(text)
        bad.chmod(0o600)
        with pytest.raises(KdnError):
            read_key_file(bad)
