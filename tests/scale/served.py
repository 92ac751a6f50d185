"""Real `kdn serve` programs over loopback, each a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.program import finish, start

Served = list[tuple[str, subprocess.Popen[str]]]


@contextmanager
def served(
    folder: Path, model: Path, num_servers: int = 1, options: tuple[str, ...] = ()
) -> Iterator[Served]:
    """`kdn serve`, each in a process of its own; their addresses."""
    programs = [
        start(folder / str(number), "serve", "--model", model, "--port", "0", "--json", *options)
        for number in range(num_servers)
    ]
    try:
        yield [(_url(program), program) for program in programs]
    finally:
        for program in programs:
            program.kill()
            finish(program)


def _url(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return str(json.loads(program.stdout.readline())["url"])
