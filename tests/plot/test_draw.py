"""Pictures in the one style: which axes are logarithmic, where names stand, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kdn.errors import BadInput
from kdn.plot import STYLES, Figure, draw
from kdn.plot.draw import _LINE_HEIGHT, _apart, named_beside

LINES = {"memory": [(1000, 5.0), (8000, 22.0)], "disk": [(1000, 4.0), (8000, 13.0)]}
SPREADS = {"memory": [(4.0, 6.0), (17.0, 24.0)]}


@pytest.mark.parametrize(
    ("values", "is_log"),
    [((1.0, 19.0), False), ((1.0, 20.0), True), ((0.0, 90.0), False), ((-1.0, 90.0), False)],
)
def test_an_axis_is_logarithmic_over_a_decade_of_positive_values(
    values: tuple[float, float], is_log: bool
) -> None:
    points = list(enumerate(values, 1))
    assert Figure("t", "x", "y", {"a": points}).has_log_y is is_log
    assert Figure("t", "x", "y", {"a": [(y, x) for x, y in points]}).has_log_x is is_log


def test_intervals_and_the_level_count_among_the_values() -> None:
    lines = {"a": [(1, 5.0)]}
    assert Figure("t", "x", "y", lines, {"a": [(0.4, 9.0)]}).has_log_y
    assert Figure("t", "x", "y", lines, level=0.1).has_log_y


def test_names_at_the_right_do_not_cover_one_another() -> None:
    placed = _apart([0.5, 0.5, 0.51, 1.2])
    assert all(b - a >= _LINE_HEIGHT - 1e-9 for a, b in pairwise(placed))
    assert (placed[0], placed[-1]) == (0.5, 1.0)


def test_a_name_stands_beside_its_end_where_no_other_end_is_in_the_way() -> None:
    """Right of the first two ends, by 0.1 and 0.24 of the axis, there is one as high; the last ends late."""
    assert named_beside([(0.4, 0.5), (0.5, 0.51), (0.74, 0.5), (0.9, 0.1)]) == {2}
    assert named_beside([(0.4, 0.5), (0.4, 0.6), (0.7, 0.5)]) == {0, 1, 2}


def test_equal_figures_give_equal_files(tmp_path: Path) -> None:
    figure = Figure("Time", "tokens", "times sooner", LINES, SPREADS, level=1.0)
    (tmp_path / "one").mkdir()
    for path in (tmp_path / "a.svg", tmp_path / "one" / "a.svg"):
        draw(figure, path)
        assert ET.parse(path).getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "one" / "a.svg").read_bytes()


def test_values_are_drawn_beside_their_names(tmp_path: Path) -> None:
    values = {"from disk": [(0, 8.0)], "kept in memory": [(0, 11.0)]}
    draw(Figure("t", "", "times sooner", values, {"from disk": [(6.0, 9.0)]}), tmp_path / "v.png")
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")


def test_lines_differ_in_grey_too() -> None:
    """Of any two of the first six lines the greys lie apart, or the dashes or the markers differ."""
    assert len({(dash, marker) for _, dash, marker in STYLES}) == len(STYLES)
    assert len({colour for colour, _, _ in STYLES}) == len(STYLES)


def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        draw(Figure("t", "x", "y", LINES), tmp_path / "picture.tokens")
