"""Do two engines on Ray, of one core each, label a table sooner than one process with both cores?

The same rows, in the same blocks, are labelled by one process without Ray, by one actor with all cores, and
by two actors with half of them each; the process comes first and last, so that the machine's drift shows.
A side's rate is counted from its first blocks on: when its engines are up.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from kdn import api
from kdn.bench.common.findings import Findings, Part, go_on
from kdn.bench.common.result import BenchOptions, Result, scratch_folder
from kdn.bench.engine.lineup import weights
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.corpus import corpus_files
from kdn.errors import EngineFailed
from kdn.rank import Row
from kdn.scale.ray import BatchSettings, LabelBatch, RowResult, run_batch

__all__ = ["counted", "run"]

TEMPLATE = "Is the text about a ship? Answer with Yes or No only.\n\n{text}"
CHOICES = ("Yes", "No")
BEFORE, AFTER = "one process", "one process, again"
ONE, TWO = "Ray, one actor", "Ray, two actors"
_WORDS = 150
_BLOCK = 8


def run(options: BenchOptions) -> Result:
    """Every side once. Raises MissingExtra without Ray."""
    torch.set_num_threads(options.threads)
    size = 32 if options.quick else 240
    table = _table(options.seed, size)
    config = options.describe() | {"num_rows": size, "block": _BLOCK}
    names = (ONE, TWO, BEFORE, AFTER)
    keys = ("two_actors_ratio", "one_actor_ratio", "one_process_rows_per_s")
    found = Findings.open(options.rows, config, dict.fromkeys(keys))
    with scratch_folder() as scratch:
        parts: list[Part] = [
            (BEFORE, partial(_process, options, table, scratch, BEFORE, found)),
            (TWO, partial(_actors, options, table, scratch, TWO, 2, found)),
            (ONE, partial(_actors, options, table, scratch, ONE, 1, found)),
            (AFTER, partial(_process, options, table, scratch, AFTER, found)),
        ]
        go_on(found, parts, options.rows)
    rates = {str(row["side"]): float(row["rows/s"] or 0.0) for row in found.rows}
    alone = [rates[name] for name in (BEFORE, AFTER) if name in rates]
    if len(rates) == len(names):
        own = sum(alone) / len(alone)
        found.summary |= {
            "two_actors_ratio": rates[TWO] / own,
            "one_actor_ratio": rates[ONE] / own,
            "one_process_rows_per_s": own,
        }
    return found.result("ray", options.model, [_MEANING])


def counted(rows: Sequence[int], seconds: Sequence[float], first: int) -> float:
    """Rows a second from the `first` blocks' end to the last one's. Raises EngineFailed for too few."""
    if len(rows) <= first or seconds[-1] <= seconds[first - 1]:
        raise EngineFailed(f"{len(rows)} blocks came together: no rate can be told")
    return (rows[-1] - rows[first - 1]) / (seconds[-1] - seconds[first - 1])


def _process(
    options: BenchOptions, table: Sequence[Row], scratch: Path, name: str, found: Findings
) -> None:
    options.say(name)
    started = time.perf_counter()
    config = Config(
        home=options.home or home_folder(os.environ),
        engine=EngineConfig(threads=options.threads, fit_idle_s=0),
        store=StoreConfig(folder=scratch / name, disk_bytes=1 << 30),
    )
    job, done, at = LabelBatch(TEMPLATE, CHOICES), list[int](), list[float]()
    with api.open(options.model, config=options.note(config)) as kdn:
        for first in range(0, len(table), _BLOCK):
            block = table[first : first + _BLOCK]
            job.run(kdn, block)
            done.append(first + len(block))
            at.append(time.perf_counter() - started)
    _keep(found, name, 1, options.threads, done, at)


def _actors(
    options: BenchOptions,
    table: Sequence[Row],
    scratch: Path,
    name: str,
    count: int,
    found: Findings,
) -> None:
    options.say(name)
    started = time.perf_counter()
    source, _ = weights(options, "bfloat16")
    settings = BatchSettings(
        str(source),
        home=str(_home(options, scratch / name)),
        actors=count,
        cpus=options.threads / count,
        batch_rows=_BLOCK,
    )
    done, at = list[int](), list[float]()

    def hear(came: Mapping[int, RowResult]) -> None:
        done.append(len(came) + (done[-1] if done else 0))
        at.append(time.perf_counter() - started)

    told = run_batch(table, LabelBatch(TEMPLATE, CHOICES), settings, on_rows=hear)
    if told.failed:
        raise EngineFailed(f"{len(told.failed)} rows failed: {next(iter(told.failed.values()))}")
    _keep(found, name, count, options.threads / count, done, at)


def _home(options: BenchOptions, place: Path) -> Path:
    """A home with a store of its own, so that no side finds another's KV; models and kernels are shared."""
    usual = options.home or home_folder(os.environ)
    place.mkdir(parents=True)
    for shared in ("models", "kernels"):
        if (usual / shared).is_dir():
            (place / shared).symlink_to((usual / shared).absolute())
    return place


def _keep(
    found: Findings,
    name: str,
    engines: int,
    cores: float,
    rows: Sequence[int],
    seconds: Sequence[float],
) -> None:
    """`rows` were done so many `seconds` after the beginning, block by block."""
    found.rows.append(
        {
            "side": name,
            "engines": engines,
            "cores of each": cores,
            "rows/s": counted(rows, seconds, engines),
            "s to the first block": seconds[0],
            "s in all": seconds[-1],
        }
    )


def _table(seed: int, size: int) -> list[Row]:
    """Texts of so many words, no two of which begin alike."""
    words = [word for file in corpus_files() for word in file.read_text("utf-8").split()]
    rng = random.Random(seed)
    starts = [rng.randrange(len(words) - _WORDS) for _ in range(size)]
    return [
        {"text": " ".join((f"{number}.", *words[at : at + _WORDS]))}
        for number, at in enumerate(starts)
    ]


_MEANING = (
    "`two_actors_ratio` is the rate of two actors over that of one process, which is the mean of its two"
    " runs. Rates leave the start out; `s in all` has it, with Ray's own start and the models' loading."
)
