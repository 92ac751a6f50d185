"""What publishers build: a wheel and its source, installed where nothing else is, and each extra alone.

A clean environment holds links to the installed distributions that its extra asks for, and to no others, so
that nothing is downloaded. `make extras` has pip resolve each extra as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from scripts.install import CONSTRAINTS, normalized

from tests.test_installation import index_answers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SOLD_ALONE = sorted(set(EXTRAS) - {"all", "dev"})
MODULES = {
    "rag": "kdn.rag.library kdn.rag.parse.pdf kdn.rag.parse.html kdn.rag.parse.rst",
    "serve": "kdn.serve.run kdn.serve.console.routes kdn.scale.router.app",
    "structured": "kdn.model.text.grammar",
    "net": "kdn.net.world kdn.net.l4s.lab kdn.net.l4s.plots",
    "rtc": "kdn.net.rtc.env kdn.net.rtc.learn kdn.net.rtc.clips",
    "label": "kdn.rank.rows",
    "plot": "kdn.plot kdn.bench.common.report",
    "redis": "kdn.store.tiers.remote.redis",
    "s3": "kdn.store.tiers.remote.objects",
    "langchain": "kdn.integrations.langchain",
    "llamaindex": "kdn.integrations.llamaindex",
    "ray": "kdn.scale.ray.run",
    "seal": "kdn.store.tiers.seal",
    "hub": "kdn.model.catalogue",
    "otel": "kdn.serve.telemetry",
}
"""Rooms that need an extra, by its name."""
Clean = Callable[[Sequence[str]], Path]


def built(source: Path, folder: Path) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = WheelBuilder(str(source)).build(directory=str(folder))
    return Path(wheel)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_code_pages_and_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith("METADATA")]
        said = archive.read(metadata).decode()
    source = ROOT / "src"
    own = {
        str(path.relative_to(source))
        for path in (source / "kdn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert own <= names
    assert "kdn/serve/console/static/console.js" in names
    assert "Provides-Extra: otel" in said
    assert not any(name.startswith(("tests", "docs")) for name in names)


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    from hatchling.builders.sdist import SdistBuilder

    [archive] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    again = built(source, tmp_path / "again")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_each_extra_is_named_where_installing_is_explained() -> None:
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*SOLD_ALONE, "all"}


def closure(requirements: Sequence[str]) -> dict[str, Distribution]:
    """What these ask for and what that asks for, as installed here. Skips where some is not."""
    found = dict[str, Distribution]()
    waiting = [(Requirement(line), "") for line in requirements]
    seen = set[tuple[str, str]]()
    while waiting:
        asked, _ = waiting.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            one = distribution(asked.name)
        except PackageNotFoundError:
            pytest.skip(f"{asked.name} is not installed here")
        found[normalized(asked.name)] = one
        for extra in ("", *asked.extras):
            if (normalized(asked.name), extra) in seen:
                continue
            seen.add((normalized(asked.name), extra))
            for line in one.requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    needed.marker = None
                    waiting.append((needed, extra))
    return found


@pytest.fixture
def clean(wheel: Path, tmp_path: Path) -> Clean:
    """Makes an environment of the wheel, what it needs, and what the given requirements need."""

    def make(extra: Sequence[str]) -> Path:
        venv.create(tmp_path / "clean", with_pip=False)
        python = tmp_path / "clean" / "bin" / "python"
        [site] = (tmp_path / "clean" / "lib").glob("python*/site-packages")
        for one in closure([*PROJECT["dependencies"], *extra]).values():
            for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__", "bin"}:
                if not (site / name).exists():
                    (site / name).symlink_to(Path(str(one.locate_file(name))))
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
             "--no-deps", "--no-index", str(wheel)],
            check=True, env=os.environ | {"PIP_CONSTRAINT": ""}, timeout=250,
        )  # fmt: skip
        return python

    return make


def run(program: Path, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    own = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("KDN_", "PYTHON", "VIRTUAL_ENV"))
    }
    return subprocess.run(
        [str(program), *arguments],
        env=own | {"HOME": str(home), "KDN_HOME": str(home / "kdn")},
        cwd=home, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


ANSWER = """
import sys, kdn
with kdn.open(sys.argv[1], dtype="float32") as k:
    print(k.generate("Who are you?", max_tokens=2).usage.completion_tokens)
"""


@pytest.mark.slow
def test_without_extras_a_model_answers(
    clean: Clean, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    done = run(clean(()), "-c", ANSWER, str(tiny_model("llama")), home=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr[-3000:]


@pytest.mark.slow
def test_without_extras_the_program_starts_and_names_what_is_missing(
    clean: Clean, tmp_path: Path
) -> None:
    """As `pipx install` leaves it: a program on the path, and nothing that was not asked for."""
    kdn = clean(()).parent / "kdn"
    shown = run(kdn, "--help", home=tmp_path)
    assert (shown.returncode, "demo" in shown.stdout) == (0, True), shown.stderr
    (tmp_path / "a.md").write_text("# A\n\nwords")
    for command, extra in (("demo", "rag"), ("ingest a.md", "rag"), ("serve", "serve")):
        done = run(kdn, *command.split(), home=tmp_path)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        said = done.stderr.strip().splitlines()[-1]
        assert re.search(rf"kdn\[{extra}\]|kdn models get", said), f"kdn {command}: {said}"


@pytest.mark.slow
@pytest.mark.parametrize("extra", SOLD_ALONE)
def test_an_extra_alone_is_enough_for_its_rooms(extra: str, clean: Clean, tmp_path: Path) -> None:
    asked = [
        line
        for one in EXTRAS[extra]
        for line in (EXTRAS[one[4:-1]] if one.startswith("kdn[") else [one])
        if (marker := Requirement(line).marker) is None or marker.evaluate()
    ]
    python = clean(asked)
    brought = {normalized(Requirement(line).name) for line in asked}
    theirs = sorted(
        module
        for module, names in packages_distributions().items()
        if brought & set(map(normalized, names))
        and not module.startswith("_")
        and importlib.util.find_spec(module) is not None
    )
    program = f"import {', '.join([*MODULES[extra].split(), *theirs])}"
    done = run(python, "-W", "ignore", "-c", program, home=tmp_path)
    assert done.returncode == 0, f"{program}: {done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pip_resolves_each_extra() -> None:
    """In the versions of constraints.txt; one of them that is missing would be refused here."""
    if "TEST_EXTRAS" not in os.environ:
        pytest.skip("`make extras` runs it: set TEST_EXTRAS=1")
    if not index_answers():
        pytest.skip("no package index answers")
    for extra in SOLD_ALONE:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
             "--constraint", str(CONSTRAINTS), f"{ROOT}[{extra}]"],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{extra}: {done.stderr[-2000:]}"
