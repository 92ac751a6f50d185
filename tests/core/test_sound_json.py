"""JSON that two readers would understand differently is refused; all other JSON is read as by Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import UnsoundJson, read_sound_json

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text()
JSON = st.recursive(PLAIN, lambda one: st.lists(one) | st.dictionaries(st.text(), one))


@given(JSON)
def test_it_reads_what_python_writes(value: Any) -> None:
    assert read_sound_json(json.dumps(value)) == value
    assert read_sound_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice in one object; give it once"),
        ('[{"x": {"a\\u0062": 1, "ab": 2}}]', "the key 'ab' stands twice"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ("[-Infinity]", "-Infinity is no number in JSON"),
        ("-1e309", "-1e309 is beyond the largest number"),
    ],
)
def test_what_readers_disagree_about_is_refused(text: str, says: str) -> None:
    with pytest.raises(UnsoundJson, match=says):
        read_sound_json(text)


def test_a_refusal_names_the_key_and_stays_short() -> None:
    with pytest.raises(UnsoundJson) as caught:
        read_sound_json('{"%s": 1, "%s": 2}' % (("k" * 10_000,) * 2))
    assert caught.value.key == "k" * 10_000
    assert len(str(caught.value)) < 120


def test_one_key_in_two_objects_and_large_numbers_are_fine() -> None:
    assert read_sound_json('[{"a": 1}, {"a": 1.7e308}]') == [{"a": 1}, {"a": 1.7e308}]
