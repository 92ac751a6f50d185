"""Benchmarks: one question a file, the same options and the same kind of answer for all.

Trades in figures and pages of results.  Only `kdn.cli` may import it.  Start reading at
`common/result.py`, then any benchmark: its docstring is the question that it answers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from kdn.bench.common.report import print_result, write_json, write_page
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.errors import BadInput
from kdn.plot import Figure

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
    "blend": "kdn.bench.blend.blend",
    "blend-load": "kdn.bench.blend.load",
    "codecs": "kdn.bench.store.codecs",
    "cost": "kdn.bench.store.cost",
    "engine": "kdn.bench.engine.engine",
    "jct": "kdn.bench.jobs.jct",
    "kdn": "kdn.bench.knowledge.knowledge",
    "l4s": "kdn.bench.l4s.l4s",
    "label": "kdn.bench.jobs.label",
    "mil": "kdn.bench.jobs.mil",
    "ndcg": "kdn.bench.rank.ndcg",
    "policies": "kdn.bench.store.policies",
    "rag": "kdn.bench.rag.rag",
    "ray": "kdn.bench.scale.ray",
    "rerank": "kdn.bench.rank.rerank",
    "router": "kdn.bench.scale.router",
    "rtc": "kdn.bench.rtc.rtc",
    "serve": "kdn.bench.serve.serve",
    "share": "kdn.bench.share.share",
    "stack": "kdn.bench.store.stack",
    "steer": "kdn.bench.steer.steer",
    "store": "kdn.bench.store.store",
    "structured": "kdn.bench.structured.structured",
    "vllm": "kdn.bench.scale.vllm",
}
"""Name to module; each module has `run(options) -> Result` and opens with its question."""


def load_bench(name: str) -> Callable[[BenchOptions], Result]:
    """The `run` of a benchmark, whose result tells all settings in force.

    Raises BadInput, naming those there are, for an unknown name.
    """
    if name not in BENCHES:
        raise BadInput(f"no benchmark {name!r}; there are {', '.join(sorted(BENCHES))}")
    run: Callable[[BenchOptions], Result] = importlib.import_module(BENCHES[name]).run
    return lambda options: replace(run(options), settings=tuple(options.settings))
