"""Stop strings: what is shown, what is held back, what is cut off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdn.engine.sampling import StopStrings


def test_text_that_may_begin_a_stop_string_waits() -> None:
    stops = StopStrings(("###",))
    assert stops.push("one #").text == "one "
    assert stops.push("two").text == "#two"
    assert stops.push("##").text == ""
    shown = stops.push("# three")
    assert (shown.text, shown.stop) == ("", "###")


def test_the_earliest_stop_string_wins_and_the_longer_at_the_same_place() -> None:
    shown = StopStrings(("b", "ab", "abc")).push("xabcd")
    assert (shown.text, shown.stop) == ("x", "abc")


def test_what_is_held_comes_out_at_the_end() -> None:
    stops = StopStrings(("END",))
    assert stops.push("the EN").text == "the "
    assert stops.flush() == "EN"


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_pieces_show_what_the_whole_would_show(pieces: list[str], stops: list[str]) -> None:
    """Twin: join everything, cut at the earliest stop string.

    A longer stop string that begins where a shorter one was met comes too late when the text comes
    in pieces, so the twin looks for the place only.
    """
    whole = "".join(pieces)
    places = [whole.find(stop) for stop in stops if stop in whole]
    watcher, shown = StopStrings(tuple(stops)), ""
    for piece in pieces:
        part = watcher.push(piece)
        shown += part.text
        if part.stop is not None:
            assert places
            assert whole.startswith(shown + part.stop)
            return
    assert not places
    assert shown + watcher.flush() == whole
