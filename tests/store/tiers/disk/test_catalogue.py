"""The catalogue by itself: room that is reserved, rows that are published, changes that others see."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdn.core import BlockKey
from kdn.errors import NoSpace, StoreError
from kdn.store.index.index import Entry
from kdn.store.tenants.tenancy import over_quota
from kdn.store.tiers.disk.catalogue import Catalogue, Victim
from kdn.store.tiers.disk.catalogue_reader import Totals
from tests.store.helpers import block_id

ENTRIES = [Entry.of(block_id([number] * 10, salt=f"tenant-{number % 2}")) for number in range(6)]
KEYS = [entry.key for entry in ENTRIES]
Open = Callable[[], Catalogue]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    catalogues: list[Catalogue] = []

    def open_one() -> Catalogue:
        catalogues.append(Catalogue(tmp_path / "c.sqlite", f"owner-{len(catalogues)}", lambda: 7.0))
        return catalogues[-1]

    yield open_one
    for catalogue in catalogues:
        catalogue.close()


def no_one(_: BlockKey) -> bool:
    return False


def publish(catalogue: Catalogue, number: int, size_bytes: int = 100, at_s: float = 0.0) -> None:
    reservation = catalogue.writer.reserve(size_bytes, 1000, no_one, lambda _: None)
    catalogue.writer.publish(reservation, ENTRIES[number], size_bytes, at_s or number)


def test_a_reservation_counts_before_a_byte_is_written(opened: Open) -> None:
    """600 of 1,000 bytes are reserved: 400 more fit and 401 do not, in any process."""
    mine, theirs = opened(), opened()
    number = mine.writer.reserve(600, 1000, no_one, lambda _: None)
    with pytest.raises(NoSpace, match="401 bytes does not fit under the store's cap of 1000"):
        theirs.writer.reserve(401, 1000, no_one, lambda _: None)
    theirs.writer.reserve(400, 1000, no_one, lambda _: None)
    mine.writer.cancel(number)
    assert theirs.reader.refresh_totals() == Totals(0, 0, 400)
    theirs.writer.release_dead(["owner-0"])
    assert mine.reader.refresh_totals() == Totals(0, 0, 0), "the second owner is dead"


def test_the_oldest_go_for_room_but_damaged_ones_before_them(opened: Open) -> None:
    catalogue, went = opened(), list[Victim]()
    for number in range(4):
        publish(catalogue, number)
    catalogue.writer.touch(KEYS[0])  # at 7.0: the youngest now
    catalogue.writer.quarantine(KEYS[3], lambda: 50)
    catalogue.writer.reserve(780, 1000, lambda key: key == KEYS[1], went.append)
    assert went == [Victim(KEYS[3], 50, quarantined=True), Victim(KEYS[2], 100, quarantined=False)]
    assert catalogue.reader.totals == Totals(2, 20, 980)
    catalogue.writer.check()


def test_what_is_ranked_goes_in_that_order_and_the_others_by_age(opened: Open) -> None:
    catalogue, went = opened(), list[Victim]()
    for number in range(4):
        publish(catalogue, number)
    catalogue.writer.rank_by(lambda: [KEYS[2], KEYS[3], BlockKey("unknown")])
    catalogue.writer.reserve(900, 1000, no_one, went.append)
    assert [victim.key for victim in went] == [KEYS[2], KEYS[3], KEYS[0]]


def test_changes_are_told_once_and_to_every_process(opened: Open) -> None:
    mine, theirs = opened(), opened()
    publish(mine, 0)
    publish(mine, 1)
    assert {entry.key for entry in theirs.reader.changes().added} == set(KEYS[:2])
    assert theirs.reader.changes().added == ()
    mine.writer.remove(KEYS[0], lambda: True)
    publish(mine, 2)
    changes = theirs.reader.changes()
    assert ([entry.key for entry in changes.added], changes.removed) == ([KEYS[2]], (KEYS[0],))
    assert (theirs.reader.knows(KEYS[0]), theirs.reader.knows(KEYS[1])) == (False, True)
    assert changes.added[0] == ENTRIES[2], "with its tokens, family and place"


def test_a_row_stays_while_its_file_does(opened: Open) -> None:
    catalogue = opened()
    publish(catalogue, 0)
    assert not catalogue.writer.remove(KEYS[0], lambda: False)
    assert catalogue.reader.keys() == [KEYS[0]]
    assert not catalogue.writer.remove(KEYS[1], lambda: True), "was never there"


def test_a_publish_that_fails_changes_nothing(opened: Open) -> None:
    catalogue = opened()
    number = catalogue.writer.reserve(100, 1000, no_one, lambda _: None)

    def fail() -> None:
        raise StoreError("no disk")

    with pytest.raises(StoreError, match="no disk"):
        catalogue.writer.publish(number, ENTRIES[0], 100, 0.0, fail)
    assert catalogue.reader.keys() == []
    assert catalogue.reader.refresh_totals() == Totals(0, 0, 100), "it is still reserved"


def test_a_tenants_blocks_oldest_use_first_and_their_lives(opened: Open) -> None:
    catalogue = opened()
    for number in range(4):
        publish(catalogue, number)
    catalogue.writer.touch(KEYS[0])
    catalogue.writer.touch(KEYS[0])
    unsaved = catalogue.writer.unsaved_uses()
    lives = list(catalogue.reader.lives_by_key(10.0, unsaved).values())
    assert [(life.age_s, life.uses) for life in lives] == [(10.0, 2), (9.0, 0), (8.0, 0), (7.0, 0)]
    catalogue.writer.save()
    assert [one.key for one in catalogue.reader.holdings("tenant-0")] == [KEYS[2], KEYS[0]]
    assert sorted(catalogue.reader.lives_by_key(10.0, {}).values()) == sorted(lives)


def test_a_row_whose_salt_passes_for_a_sealed_tenants_goes_before_that_tenants(
    opened: Open,
) -> None:
    """Earlier versions stored such salts: nobody finds the row, and it is the first to make room."""
    catalogue = opened()
    old = Entry.of(block_id([7] * 10, salt="\x01tenant-0"))
    catalogue.writer.publish(None, old, 100, 1.0)
    publish(catalogue, 0, at_s=2.0)
    assert [entry.key for entry in catalogue.reader.changes().added] == [KEYS[0]]
    held = catalogue.reader.holdings("tenant-0")
    assert over_quota("tenant-0", 200, 100, held, set()) == [old.key]
    assert catalogue.writer.remove(old.key, lambda: True)
    assert [one.key for one in catalogue.reader.holdings("tenant-0")] == [KEYS[0]]


def test_a_sealed_row_is_its_tenants_when_it_is_ranked(tmp_path: Path) -> None:
    """Priorities go by the salt, sealed or not."""
    sealed = Catalogue(tmp_path / "c.sqlite", "me", lambda: 7.0, lambda _key, _salt, data: data)
    publish(sealed, 1)
    assert [use.salt for use, _ in sealed.reader.uses()] == ["tenant-1"]
    sealed.close()


def test_what_memory_says_waits_for_no_other_process(opened: Open, tmp_path: Path) -> None:
    catalogue = opened()
    publish(catalogue, 0)
    other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert catalogue.reader.totals == Totals(1, 10, 100)
    assert [entry.key for entry in catalogue.reader.changes().added] == [KEYS[0]]
    other.execute("ROLLBACK")
    other.close()
