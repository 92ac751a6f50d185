"""What a benchmark is asked, and what it answers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdn.clock import Clock, SystemClock
from kdn.config import Config, home_folder
from kdn.machine.facts import Machine, describe_machine
from kdn.machine.scratch import locked_folder
from kdn.plot import Figure

__all__ = [
    "USUAL_DTYPE",
    "BenchOptions",
    "Result",
    "Row",
    "Scalar",
    "commit_name",
    "model_name",
    "say_nothing",
    "scratch_folder",
]

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
USUAL_DTYPE = "bfloat16"
"""What pages are of that name no other."""
_CHECKOUT = Path(__file__).parents[4]


def say_nothing(line: str) -> None:
    """The default listener of a benchmark's progress."""


@dataclass(frozen=True)
class BenchOptions:
    """The same for every benchmark; each uses what concerns it."""

    model: str = "smollm2-135m"
    data: Path | None = None
    """A folder or file of data, for benchmarks that can use more than what kdn ships."""
    adapters: Path | None = None
    """A folder of fine-tunes, for benchmarks that compare them."""
    quick: bool = False
    """Ends within 50 seconds on two cores: fewer repeats, no rival that is slow to start."""
    seed: int = 0
    pairs: int | None = None
    """Interleaved pairs per comparison; None means five, or as few as `quick` needs."""
    threads: int = 2
    home: Path | None = None
    """The home folder with the models; None means the usual one. Results never go there."""
    only: str | None = None
    """A part of the benchmark's own naming; None runs all of it."""
    arms: tuple[str, ...] | None = None
    """The ways to compare, in the benchmark's own naming; None means its usual ones."""
    sets: tuple[str, ...] | None = None
    """Of the benchmark's sets of questions these alone; None means all."""
    ratios: tuple[float, ...] | None = None
    """The shares of rows to recompute; None means the benchmark's usual ones."""
    items: int | None = None
    """At most so many prompts, held-out items of a pair, or questions over a context; None means the
    benchmark's usual number."""
    rows: Path | None = None
    """A file of finished rows, for benchmarks that can go on where an earlier run ended."""
    rivals: Path = _CHECKOUT / ".venv-rivals"
    """The environment that `make rivals` builds; what it lacks is reported as null."""
    clock: Clock = field(default_factory=SystemClock)
    say: Callable[[str], None] = say_nothing
    """Told in a line what is being measured."""

    settings: list[dict[str, Any]] = field(default_factory=list)
    """Those that kdn was opened with, each different set once; `note` adds to it."""

    def note(self, config: Config) -> Config:
        """Keep settings that are in force, for the result; no folder of this machine is named."""
        shown = config.effective()
        shown["home"], home = "(home)", str(config.home)
        for room in ("store", "library"):
            folder = shown[room]["folder"]
            within = folder.startswith(home)
            shown[room]["folder"] = f"(home){folder[len(home) :]}" if within else "(scratch)"
        if shown not in self.settings:
            self.settings.append(shown)
        return config

    def machine_dtype(self) -> str:
        """What models compute in on this machine where nobody says otherwise: for what has none open."""
        # they bring torch, and some benchmarks have no model
        from kdn.machine.doctor import measured_dtype
        from kdn.model import pick_device, pick_dtype

        device = pick_device("auto")
        measured = measured_dtype(self.home or home_folder(os.environ), device.type)
        return str(pick_dtype(measured or "auto", device)).removeprefix("torch.")

    def describe(self) -> dict[str, Scalar]:
        """The options that a result depends on."""
        return {
            "model": model_name(self.model),
            "quick": self.quick,
            "seed": self.seed,
            "pairs": self.pairs,
            "threads": self.threads,
            "data": str(self.data.name) if self.data is not None else None,
        }

    def describe_kept(self) -> dict[str, Scalar]:
        """Those of a result that is made of kept rows or in parts: also which file, and what was run."""
        return self.describe() | {
            "only": self.only,
            "rows": None if self.rows is None else self.rows.name,
            "arms": ",".join(self.arms or ()) or None,
            "sets": ",".join(self.sets or ()) or None,
            "ratio": " --ratio ".join(map(str, self.ratios or ())) or None,
        }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what a benchmark writes while it runs; those of killed benchmarks are removed."""
    with locked_folder(Path(tempfile.gettempdir()), "kdn-benchmark-") as folder:
        yield folder


def model_name(model: str) -> str:
    """A model without the place where it lies: reports name no machine's folders."""
    return Path(model).name.removesuffix(".gguf")


def commit_name() -> str:
    """The checkout's commit, marked when files differ from it; else the installed version."""
    try:
        return _git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return f"kdn {version('kdn')}"
    except PackageNotFoundError:
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_CHECKOUT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Result:
    """What a benchmark found. `summary` has every key it ever has; absent rivals are None."""

    bench: str
    model: str
    config: dict[str, Any]
    rows: list[Row]
    summary: dict[str, float | None]
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers, such as rivals that were not there."""
    figures: tuple[Figure, ...] = ()
    settings: tuple[dict[str, Any], ...] = ()
    """All settings of every kdn that was opened for it."""
    page: str | None = None
    """The report's file name without suffix, where one benchmark has several pages; None: `bench`."""
    dtype: str | None = None
    """What the model computed in, where the result depends on it: each has a page of its own, so that a
    processor without bf16 leaves the page of one that has it alone."""
    machine: Machine = field(default_factory=describe_machine)
    commit: str = field(default_factory=commit_name)

    @property
    def model_name(self) -> str:
        """The model as reports name it."""
        return model_name(self.model)

    @property
    def page_name(self) -> str:
        """The report's file name without suffix."""
        name = self.page or self.bench
        return name if self.dtype in (None, USUAL_DTYPE) else f"{name}-{self.dtype}"

    def as_json(self) -> dict[str, Any]:
        """The result as plain values; its figures too, so that they can be drawn again."""
        return {
            "bench": self.bench,
            "commit": self.commit,
            "machine": self.machine,
            "model": self.model_name,
            "config": self.config | ({} if self.dtype is None else {"dtype": self.dtype}),
            "settings": self.settings,
            "rows": self.rows,
            "summary": self.summary,
            "notes": self.notes,
            "figures": self.figures,
        }
