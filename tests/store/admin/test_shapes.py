"""The shapes that commands and routes tell of a store."""

from __future__ import annotations

from dataclasses import replace

from kdn.store import MemoryTier, Store
from kdn.store.admin.shapes import stat_shape
from kdn.trace import NoTrace


def test_what_was_lost_and_what_was_not_worth_writing_is_told() -> None:
    with Store([MemoryTier(10**6, NoTrace())]) as store:
        stat = replace(store.stat(), lost=2, not_worth_writing=3)
    shape = stat_shape(stat)
    assert (shape["lost"], shape["not_worth_writing"]) == (2, 3)
