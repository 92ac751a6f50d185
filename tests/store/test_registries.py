"""A new codec, policy and remote are one file and one line each: everything else learns of them by name."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdn.core import EXACT
from kdn.errors import BadConfig
from kdn.store import CODECS, Codec, StoreConfig, open_store
from kdn.store.codecs import RunForm
from kdn.store.policies import POLICIES, Lru
from kdn.store.tiers.remote import REMOTES
from tests.store.helpers import MODEL, block_id, make_block, run_of
from tests.store.twins import DictRemote

FIRST = block_id(range(200))


@contextmanager
def registered(registry: MutableMapping[str, Any], name: str, one: object) -> Iterator[None]:
    registry[name] = one
    try:
        yield
    finally:
        del registry[name]


class Inverting(Codec):
    """Stores every byte as its complement."""

    name = "inverting"
    lossless = True

    def encode(self, run: memoryview, form: RunForm) -> memoryview:
        return memoryview(bytes(255 - byte for byte in run))

    def decode(self, stored: memoryview, form: RunForm) -> memoryview:
        return self.encode(stored, form)


class Mru(Lru):
    """What was used last goes first."""

    name = "mru"

    def victims(self, now_s: float) -> Any:
        return iter(list(super().victims(now_s))[::-1])


def test_a_codec(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"'inverting'; it can be .*lossless"):
        StoreConfig(codec="inverting")
    with registered(CODECS, "inverting", Inverting()):
        assert StoreConfig(codec="inverting").codec == "inverting"
        with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
            store.put(make_block(FIRST), CODECS["inverting"])
        with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
            reader = store.open(FIRST)
            assert reader is not None
            with reader:
                assert bytes(reader.layer(1)) == run_of(FIRST, 1)


def test_a_policy() -> None:
    with pytest.raises(BadConfig, match=r"'mru'; it can be .*lru"):
        StoreConfig(policy="mru")
    with registered(POLICIES, "mru", lambda _: Mru()):
        assert StoreConfig(policy="mru").policy == "mru"
        blocks = [make_block(block_id([number] * 256)) for number in range(3)]
        with open_store(None, memory_bytes=2 * 60_000, policy="mru") as store:
            for block in blocks:
                store.put(block)
            left = [len(store.tiers.where(block.id.key)) for block in blocks]
            assert left == [1, 0, 1], "room for two: of the first two the younger went"


def test_a_remote(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"'dict'; it can be .*redis"):
        StoreConfig(remotes={"dict": {}})
    with registered(REMOTES, "dict", DictRemote):
        settings = StoreConfig(remotes={"dict": {}}, far_poll_s=0)
        with open_store(tmp_path / "kv", disk_bytes=10**6, far=settings) as store:
            store.put(make_block(FIRST))
            assert store.flush(60)
            assert store.tiers.where(FIRST.key) == ("memory", "disk", "dict")
            match = store.match(MODEL, EXACT, "", tuple(range(200)))
            assert [hit.tier for hit in match.hits] == ["memory"]
