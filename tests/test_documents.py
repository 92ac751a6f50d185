"""What the documents say to type is there, and the tutorials and examples are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import yaml
from typer.main import get_command

from kdn.cli import app, main
from kdn.config import Config, parse_bytes
from kdn.errors import UnknownModel
from kdn.machine.process import INTERRUPTED
from kdn.model import known_models, resolve
from tests.cli.program import kdn
from tests.engine.test_company import weaken, write_adapter

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))]
COMMANDS = DOCS / "cli.md"
EVERYWHERE = {"--help", "--install-completion", "--show-completion"}
TUTORIALS = sorted(path.name for path in DOCS.glob("tutorials/*.md"))
EXAMPLES = sorted(
    path.name for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("ray_")
)
"""Those of Ray talk to servers that tests of scale start."""


def blocks(page: Path, kind: str = r"\w*") -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Every `kdn ...` line of a page's blocks, as a shell would cut it, without what explains it."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"kdn [a-z]", line):
                continue
            typed = re.split(r"\s{3,}|\s+#|\s[|>&<]", line)[0]
            try:
                yield shlex.split(typed)[1:]
            except ValueError:  # a quotation that goes on in the next line
                continue


@cache
def program() -> Any:
    return get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_of_kdns(page: Path) -> None:
    for words in commands(page):
        command: Any = program()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", None), f"{page.name}: kdn ... {words}"
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert set(given) <= known, f"{page.name}: {command.name} {words}"


def test_every_option_is_on_the_page_of_commands() -> None:
    """Those that turn something off, too."""
    chapters = dict(
        re.findall(r"^## (kdn.*)\n((?:(?!## ).*\n)*)", COMMANDS.read_text("utf-8"), re.MULTILINE)
    )
    missing, waiting = [], [("kdn", program())]
    for name, command in waiting:
        waiting += [
            (f"{name} {word}", one) for word, one in getattr(command, "commands", {}).items()
        ]
        words = [word for one in command.params for word in (*one.opts, *one.secondary_opts)]
        listed = set(re.findall(r"--?[\w-]+", chapters[name])) | EVERYWHERE
        missing += [f"{name} {word}" for word in words if word[0] == "-" and word not in listed]
    assert missing == []
    assert len(waiting) > 60


def test_the_cap_that_was_asked_for_last_is_undone_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "store.md").read_text("utf-8")
    (undo,) = re.findall(r'`KDN_STORE_DISK_BYTES="([^"]+)" kdn (store stat)`', page)
    caps = []
    for asked in ("1 GB", None, undo[0], None):
        with monkeypatch.context() as environment:
            if asked is not None:
                environment.setenv("KDN_STORE_DISK_BYTES", asked)
            told = kdn(tmp_path, *undo[1].split(), "--json").json
        caps.append(told["tiers"]["disk"]["capacity_bytes"])
    assert caps == [10**9, 10**9, parse_bytes(undo[0]), parse_bytes(undo[0])]
    (row,) = re.findall(
        r"^\| `disk_bytes` .*$", (DOCS / "configuration.md").read_text("utf-8"), re.MULTILINE
    )
    assert "asked for last" in row


def test_the_codes_that_kdn_ends_with_are_those_of_the_page() -> None:
    listed = re.findall(r"^\| (\d+) \|", COMMANDS.read_text("utf-8"), re.MULTILINE)
    assert main.__doc__ is not None
    assert listed == re.findall(r"\d+", main.__doc__)
    assert listed == ["0", "1", "2", str(INTERRUPTED), str(128 + SIGTERM)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_curl_posts_has_its_type(page: Path) -> None:
    """Without it curl says that a form is sent, which servers refuse: any page of the web may send one."""
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        if re.search(r"\bcurl\b.* (-d|--data)\b", line):
            assert "content-type: application/json" in line


@pytest.mark.parametrize("page", ["index.md", "tutorials/answer.md"])
def test_who_installs_by_pip_is_told_to_fetch_the_models(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert "pip install" in text
    for model in known_models():
        assert f"kdn models get {model.name}" in text


def test_a_units_model_is_fetched_before_it_starts() -> None:
    unit = (ROOT / "deploy" / "kdn-serve.service").read_text("utf-8")
    (name,) = re.findall(r"--model (\S+)", unit)
    before, _, _ = (
        (DOCS / "scale.md").read_text("utf-8").partition("systemctl enable --now kdn-serve")
    )
    assert f"kdn models get {name}" in before


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who has kdn on the path and a home of its own."""
    folder = tmp_path_factory.mktemp("bin")
    kdn = folder / "kdn"
    kdn.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdn "$@"\n')
    kdn.chmod(0o755)
    own = {name: text for name, text in os.environ.items() if not name.startswith("KDN_")}
    return own | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "KDN_HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(ROOT / "src"),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_as_it_stands(
    name: str, typed: dict[str, str], tmp_path: Path, smollm2: Path
) -> None:
    script = "\n".join(blocks(DOCS / "tutorials" / name, "sh"))
    if "kdn ingest" in script:
        pytest.importorskip("lancedb")
        try:
            resolve("minilm-l6", tmp_path)
        except UnknownModel as why:
            pytest.skip(str(why))
    if "curl" in script and shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    if name == "l4s.md":
        pytest.importorskip("numba")
    if name == "video.md":
        pytest.importorskip("av")
    done = subprocess.run(
        ["bash", "-e", "-m", "-c", script],
        cwd=tmp_path,
        env=typed,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if name == "share.md":
        shared = [int(found) for found in re.findall(r"'shared': (\d+)", done.stdout)]
        assert (shared[0], shared[1] > 100) == (0, True), done.stdout
    if name == "why.md":
        assert done.stdout.count("[changing_value]") == 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(
    name: str, typed: dict[str, str], tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    arguments: list[str] = []
    if name == "answer.py":
        pytest.importorskip("lancedb")
        try:
            resolve("minilm-l6", tmp_path)
        except UnknownModel as why:
            pytest.skip(str(why))
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("The lamp is green while everything is well.")
        arguments = ["texts", "What colour is the lamp?"]
    if name == "agents.py":
        adapter = write_adapter(tmp_path / "worker", 1, ("q_proj", "v_proj"))
        weaken(adapter)
        arguments = [str(adapter)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=tmp_path,
        env=typed
        | {
            "EXAMPLE_MODEL": str(tiny_model("llama", max_position_embeddings=8192)),
            "KDN_HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if name == "why.py":
        assert "changing_value" in done.stdout
    if name == "agents.py":
        assert re.search(r"planner's \([1-9]\d+ tokens shared\)", done.stdout), done.stdout


def test_the_site_has_its_pages_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def pages(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        for child in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        ):
            yield from pages(child)

    listed = list(pages(site["nav"]))
    there = {
        str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "benchmarks" not in path.parts
    }
    assert len(listed) == len(set(listed))
    assert {page for page in listed if not page.startswith("benchmarks/")} <= there
    assert len(there - set(listed)) <= 3, f"put them into mkdocs.yml: {sorted(there - set(listed))}"


def test_the_papers_are_cited() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    numbers = {one["url"].rpartition("/")[2] for one in cited["references"]}
    assert numbers == {
        "2409.13761", "2405.16444", "2411.02820", "2411.13009", "2505.07203",
        "2504.02921", "2412.10543", "2503.14647", "2410.06112", "2411.06742",
    }  # fmt: skip
    assert cited["cff-version"] == "1.2.0"


def test_every_setting_is_listed_with_its_name_in_the_environment() -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(KDN_\w+)` \| .* \| (.+) \|$", page, re.MULTILINE)
    config = Config(home=ROOT)
    names = {
        f"KDN_{room}_{field}".upper()
        for room in Config.__struct_fields__
        if room != "home"
        for field in getattr(config, room).__struct_fields__
    }
    assert {variable for _, variable, _ in rows} == names
    for field, variable, _ in rows:
        assert variable.endswith(field.upper())
