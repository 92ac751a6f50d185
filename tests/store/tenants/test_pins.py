"""Pins count their holders; those in a file hold while the file cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import BlockKey
from kdn.errors import NoSpace, StoreError
from kdn.store import open_store
from kdn.store.tenants.tenancy import PersistentPins, Pins
from tests.store.helpers import block_id, make_block

KEY, OTHER = BlockKey("a"), BlockKey("b")
SIZE = 16384
"""Of a test block: one page of header and three of layers."""


def test_a_key_is_held_until_its_last_holder_lets_go() -> None:
    pins = Pins()
    for key in (KEY, OTHER, KEY):
        pins.hold(key)
    pins.release(KEY)
    pins.release(OTHER)
    assert KEY in pins
    assert OTHER not in pins
    pins.release(KEY)
    assert KEY not in pins


def test_releasing_what_is_not_held_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Pins().release(KEY)


def refusing(folder: Path) -> Path:
    """The pins' file gives errors from now on, since a folder stands in its place; where it went."""
    aside = (folder / "pins.json").rename(folder / "aside")
    (folder / "pins.json").mkdir()
    return aside


def test_a_device_that_refuses_unpins_nothing(tmp_path: Path) -> None:
    """A process that has read the pins goes on with them; a new one spares every block until it has."""
    clock = ManualClock()
    known, late = PersistentPins(tmp_path, clock), PersistentPins(tmp_path, clock)
    known.pin([KEY], None)
    aside = refusing(tmp_path)
    clock.advance(2)
    assert [KEY in known, OTHER in known] == [True, False]
    assert [KEY in late, OTHER in late] == [True, True]
    for pins in (known, late):
        with pytest.raises(StoreError, match=r"changing .*pins\.json"):
            pins.pin([OTHER], None)
    (tmp_path / "pins.json").rmdir()
    aside.rename(tmp_path / "pins.json")
    clock.advance(2)
    assert [KEY in late, OTHER in late] == [True, False]
    late.pin([OTHER], None)
    clock.advance(2)
    assert set(known.all()) == {KEY, OTHER}


def test_a_missing_or_damaged_file_pins_nothing(tmp_path: Path) -> None:
    pins = PersistentPins(tmp_path, ManualClock())
    assert KEY not in pins
    (tmp_path / "pins.json").write_text("{")
    assert KEY not in PersistentPins(tmp_path, ManualClock())


def test_a_lower_cap_leaves_what_is_pinned(tmp_path: Path) -> None:
    """Three blocks, the oldest pinned, then room for two, and then for none: what is pinned stays."""
    clock, folder = ManualClock(), tmp_path / "kv"
    blocks = [make_block(block_id([number])) for number in range(3)]
    with open_store(folder, disk_bytes=3 * SIZE, clock=clock) as store:
        for block in blocks:
            store.put(block)
            clock.advance(1)
        store.tenancy.persistent_pins.pin([blocks[0].id.key], None)
    for cap_bytes, kept in [(2 * SIZE, [0, 2]), (SIZE // 2, [0])]:
        with open_store(folder, disk_bytes=cap_bytes, clock=clock) as store:
            disk = store.tiers.durable
            assert [n for n, block in enumerate(blocks) if disk.holds(block.id.key)] == kept
            store.check()
    with open_store(folder, clock=clock) as store, pytest.raises(NoSpace):
        store.put(blocks[1])
