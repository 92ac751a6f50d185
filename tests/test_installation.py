"""An installation stands still: every version is written down, and both ends of the ranges work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from scripts.install import (
    CONSTRAINTS,
    ROOT,
    constrained,
    floors,
    normalized,
    requirements,
)

# A torch for GPUs brings these, each in the one version that it asks for.
BROUGHT_BY_TORCH = ("nvidia-", "cuda-", "triton")
# Tests of rooms that are mostly other people's libraries, a minute in all.
FLOOR_TESTS = (
    "bench/**/test_engine.py",
    "bench/**/test_report.py",
    "integrations/**/test_*.py",
    "model/**/test_chat.py",
    "model/**/test_gguf.py",
    "model/**/test_lora.py",
    "model/**/test_tokenizer.py",
    "rag/**/test_parse.py",
    "rag/**/test_tables.py",
    "serve/**/test_client.py",
    "serve/**/test_errors.py",
)
IMPORT_EVERYTHING = """
import importlib, pkgutil, kdn
for module in pkgutil.walk_packages(kdn.__path__, "kdn."):
    if not module.name.endswith("__main__") and not module.name.startswith("kdn.scale.vllm"):
        importlib.import_module(module.name)
"""


def test_constraints_are_names_and_versions_and_nothing_else() -> None:
    lines = CONSTRAINTS.read_text("utf-8").splitlines()
    wrong = [
        line
        for line in lines
        if not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.]+", line)
    ]
    assert wrong == [], "no address of an index, no local version such as +cpu, no range"


def test_constraints_name_every_installed_distribution() -> None:
    marker = Path(sys.prefix) / ".installed"
    made_of = marker.read_text("utf-8") if marker.exists() else "something else"
    if made_of != "constraints" and "CI" not in os.environ:
        pytest.skip(
            f"this environment is made of {made_of}; `make install` makes one of constraints"
        )
    installed = {normalized(found.name): found.version for found in distributions()}
    del installed["kdn"]
    listed = constrained()
    wrong = [
        f"{name}=={version.partition('+')[0]} is installed, constraints.txt has {listed.get(name)}"
        for name, version in sorted(installed.items())
        if version.partition("+")[0] != listed.get(name) and not name.startswith(BROUGHT_BY_TORCH)
    ]
    assert wrong == [], "write these into constraints.txt, or `rm -rf .venv && make install`"


def test_constraints_lie_within_the_ranges() -> None:
    listed = constrained()
    for requirement in map(Requirement, requirements()):
        assert listed[normalized(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("pypdf", "6.7.1", "a cross-reference table that names itself is read for ever"),
        ("pypdf", "6.14.0", "an inline image without an end is read for ever"),
        ("pypdf", "6.16.0", "many forms on a page take minutes and memory to extract"),
        ("selectolax", "0.4.8", "some option elements end the process"),
        ("gguf", "0.17.0", "its import needs sentencepiece, which it does not ask for"),
        ("jinja2", "3.1.5", "a template gets out of its sandbox"),
        ("lancedb", "0.33.0", "create_index takes no config"),
        ("peft", "0.17.0", "its import fails with transformers 5"),
        ("typer", "0.15.0", "its help fails with the newest click"),
        ("transformers", "4.57.1", "it does not know rope_parameters, which models now come with"),
    ],
)
def test_a_version_known_to_fail_is_excluded(name: str, bad: str, why: str) -> None:
    assert Version(bad) < Version(floors()[name]), why


def index_answers() -> bool:
    """Whether pip finds a package that it does not have, within some seconds."""
    asked = ["index", "versions", "pip", "--retries", "0", "--timeout", "10"]
    command = [sys.executable, "-m", "pip", *asked]
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    return False


def floor_tests() -> list[str]:
    found = {pattern: sorted((ROOT / "tests").glob(pattern)) for pattern in FLOOR_TESTS}
    assert all(found.values()), found
    return [str(path) for paths in found.values() for path in paths]


def test_the_tests_of_the_floors_are_there() -> None:
    assert len(floor_tests()) >= len(FLOOR_TESTS)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="floors are those of Python 3.11")
def test_the_lowest_versions_work(tmp_path: Path) -> None:
    """All but torch, which stays as constrained: each of its versions is gigabytes to download."""
    if "TEST_FLOORS" not in os.environ:
        pytest.skip("it takes minutes; `make floors` and .ci/run run it: set TEST_FLOORS=1")
    if not index_answers():
        pytest.skip("no package index answers")
    folder = tmp_path / "environment"
    python = str(folder / "bin" / "python")
    for command in (
        [sys.executable, "scripts/install.py", str(folder), "floors"],
        [python, "-c", IMPORT_EVERYTHING],
        [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *floor_tests()],
    ):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PIP_NO_COMPILE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
