"""The house keeps its shape: rooms, sizes, names and words that `docs/architecture.md` promises."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kdn"
TESTS = ROOT / "tests"
GROUND = {"__init__", "__main__", "clock", "config", "errors", "testing", "trace"}
OLD_WORDS = re.compile(
    r"\b(?i:gladly|mishaps?|whoever|undrifted|lasting ?pins|given a rest|close_books|unpaid|anew"
    r"|lessons?|drift taken off|un_?mended"
    r"|waiting room|unless_gone|walk_own|flock(?!\()|mend(?:s|ed|ing)?|_?look_over|ward)\b|\bNOBODY\b"
)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def classes(module: Path) -> Iterator[ast.ClassDef]:
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node


def num_lines(folder: Path) -> int:
    return sum(len(path.read_text("utf-8").splitlines()) for path in folder.rglob("*.py"))


def test_only_the_ground_lies_at_the_root() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == GROUND


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in modules()
        if (lines := len(path.read_text("utf-8").splitlines())) > 400
    }
    assert long == {}


def test_a_class_of_more_than_twenty_methods_says_why() -> None:
    large = {}
    for module in modules():
        for found in classes(module):
            methods = [
                node
                for node in found.body
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            ]
            excused = "methods because" in (ast.get_docstring(found) or "")
            if len(methods) > 20 and not excused:
                large[found.name] = len(methods)
    assert large == {}


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for module in modules():
        for found in classes(module):
            if not found.name.startswith("_"):
                places[found.name].append(str(module.relative_to(SOURCE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize(
    "room",
    sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE),
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_a_room_says_what_it_trades_in(room: Path) -> None:
    """The first sentence is the room's caption in README.md; a room at the root says three things."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    caption = text.split("\n\n")[0].replace("\n", " ")
    assert caption.endswith("."), "the caption is one whole sentence"
    assert len(caption) <= 100, f"{len(caption)} characters"
    if room.parent == SOURCE:
        for word in ("rades in", "import", "Start reading"):
            assert word in text, f"{word!r} is missing"


def test_tests_are_half_as_long_as_what_they_test() -> None:
    assert num_lines(TESTS) / num_lines(SOURCE) >= 0.5


@pytest.mark.parametrize(
    ("room", "least"),
    [("core", 0.5), ("net", 0.35), ("bench", 0.2), ("cli", 0.4), ("store", 0.5), ("serve", 0.5)],
)
def test_no_room_is_thinly_tested(room: str, least: float) -> None:
    assert num_lines(TESTS / room) / num_lines(SOURCE / room) >= least


def test_the_words_are_those_of_the_field() -> None:
    pages = list((ROOT / "docs").glob("*.md"))
    tests = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {hit[0]}"
        for path in (*modules(), *tests, *pages, ROOT / "README.md")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for hit in OLD_WORDS.finditer(line)
    ]
    assert found == []


def test_the_readme_is_read_in_one_sitting() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if re.match(r" {4,}\w+\.py ", line)] == [], "a tree of files"
