"""Pins count their holders."""

from __future__ import annotations

import pytest

from kdn.core import BlockKey
from kdn.store.tenants.tenancy import Pins

KEY, OTHER = BlockKey("a"), BlockKey("b")


def test_a_key_is_held_until_its_last_holder_lets_go() -> None:
    pins = Pins()
    pins.hold(KEY)
    with pins.held([KEY, OTHER, KEY]):
        assert KEY in pins
        assert OTHER in pins
    assert KEY in pins
    assert OTHER not in pins
    pins.release(KEY)
    assert KEY not in pins


def test_pins_are_released_when_the_block_fails() -> None:
    pins = Pins()
    with pytest.raises(KeyError), pins.held([KEY]):
        raise KeyError
    assert KEY not in pins


def test_releasing_what_is_not_held_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Pins().release(KEY)
