"""Benchmarks: one question a file, the same options and the same kind of answer for all."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from kdn.bench.report import print_result, write_json, write_page
from kdn.bench.result import BenchOptions, Figure, Result, Row
from kdn.errors import BadInput

__all__ = [
    "BENCHES",
    "BenchOptions",
    "Figure",
    "Result",
    "Row",
    "load_bench",
    "print_result",
    "write_json",
    "write_page",
]

BENCHES: dict[str, str] = {
    "blend": "kdn.bench.blend",
    "blend-load": "kdn.bench.blend_load",
    "codecs": "kdn.bench.codecs",
    "cost": "kdn.bench.cost",
    "engine": "kdn.bench.engine",
    "jct": "kdn.bench.jct",
    "kdn": "kdn.bench.knowledge",
    "l4s": "kdn.bench.l4s",
    "label": "kdn.bench.label",
    "mil": "kdn.bench.mil",
    "ndcg": "kdn.bench.ndcg",
    "policies": "kdn.bench.policies",
    "rerank": "kdn.bench.rerank",
    "stack": "kdn.bench.stack",
    "store": "kdn.bench.store",
}
"""Name to module; each module has `run(options) -> Result` and opens with its question."""


def load_bench(name: str) -> Callable[[BenchOptions], Result]:
    """The `run` of a benchmark. Raises BadInput, naming those there are, for an unknown name."""
    if name not in BENCHES:
        raise BadInput(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHES))}")
    run: Callable[[BenchOptions], Result] = importlib.import_module(BENCHES[name]).run
    return run
