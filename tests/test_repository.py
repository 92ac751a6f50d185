"""Promises about the repository itself: arrows, names, sizes, and nothing that is only true here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kdn"
# Places that exist on one machine only, and addresses of package indexes.
LOCAL = re.compile(
    r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|opt/(?:pypi|wheels))\b"
    r"|(?:pypi|download\.pytorch|wheels|index)\.(?:org|io)\b"
    r"|--(?:extra-)?index-url|--find-links"
)


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def lists_of_public_names(module: Path) -> Iterator[list[str]]:
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            yield ast.literal_eval(node.value)


def isort_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_imports_between_rooms_point_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_tracked_names_a_place_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in LOCAL.finditer(text)]
    assert found == []


def test_public_names_are_listed_once_and_in_order() -> None:
    for module in modules():
        for names in lists_of_public_names(module):
            assert names == sorted(set(names), key=isort_order), module


def test_every_module_opens_with_a_sentence_about_itself() -> None:
    without = [
        path for path in modules() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert without == []


@pytest.mark.alone
def test_importing_kdn_is_quick_and_pulls_no_tensors() -> None:
    program = (
        "import sys, time; started = time.process_time(); import kdn; "
        "print(time.process_time() - started); "
        "print(sorted({'torch', 'lancedb', 'fastapi', 'transformers'} & set(sys.modules)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(SOURCE.parent)},
        ).stdout.split("\n")
        for _ in range(3)  # the best of three, of the processor's time, for a machine that is busy
    ]
    assert min(float(seconds) for seconds, *_ in runs) < 0.2
    assert runs[0][1] == "[]"


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    plain = {*project["dependencies"], *(name for extra in extras.values() for name in extra)}
    lines = text.partition("[project]")[2].splitlines()
    for requirement in plain:
        name = re.split(r"[<>=\[ ]", requirement)[0]
        if name == "kdn" or name.startswith("types-"):
            continue
        [line, *_] = [line for line in lines if f'"{requirement}"' in line]
        assert "#" in line or name in ("pytest", "ruff", "mypy"), f"why {requirement}?"


def test_every_file_of_the_package_is_small_enough_to_read() -> None:
    large = {
        str(path.relative_to(ROOT)): lines
        for path in modules()
        if (lines := len(path.read_text("utf-8").splitlines())) > 700
    }
    assert large == {}


def test_the_readme_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|c))`", text)
    places = (ROOT, ROOT / "docs", SOURCE)
    made_by_users = {"kdn.toml"}
    missing = [
        name
        for name in named
        if name not in made_by_users and not any((place / name).exists() for place in places)
    ]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            known = (page.parent / target).exists() or "benchmarks/" in target
            assert known, f"{page.name} links to {target}"
