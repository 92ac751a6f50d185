"""How soon does a real vLLM answer when its KV comes from kdn, from its own cache, or from others' stores?

Each arm is a vLLM of its own with the same model and the same prompts; they run one after the other.
A prompt is asked three times: new to everybody (a miss with the connector on), again at once (vLLM's own
cache), and once more after vLLM's cache was emptied (a hit of the store).  The model has SmolLM2-135M's shape
and random weights, unless a folder is given.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.contestants import RivalProcess
from kdn.bench.store.far import start_node, start_redis
from kdn.errors import BadInput, EngineFailed
from kdn.machine.facts import describe_machine
from kdn.plot import Figure
from kdn.testing import write_tiny_model

__all__ = ["run", "vllm_python"]

LENGTHS = (512, 1024, 2048, 4096)
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
}
OFF, EXAMPLE, LMCACHE = "no connector", "ExampleConnector", "LMCache"
MEMORY, DISK, REDIS, NODE = "kdn memory", "kdn disk", "kdn Redis", "kdn node"
ARMS = (OFF, MEMORY, DISK, REDIS, NODE, EXAMPLE, LMCACHE)
NEW, AGAIN, HIT = "new", "again", "hit"
_SOURCE = Path(__file__).parents[3]
_CHECKOUT = _SOURCE.parent

Times = dict[tuple[str, int, str], list[float]]
"""Seconds by arm, length and way."""


class _VllmArm(RivalProcess):
    """A vLLM in its own environment."""

    def ask(self, prompt: Sequence[int]) -> Mapping[str, Any]:
        """Seconds, cached tokens and the token of one answer."""
        return self._ask(op="ask", prompt=list(prompt))

    def settle(self) -> None:
        """Have all stored, and vLLM's own cache emptied."""
        self._ask(op="settle")


def vllm_python() -> Path:
    """The Python that has vLLM: `VLLM_PYTHON`, or that of `make test-vllm`. Raises BadInput without."""
    path = Path(os.environ.get("VLLM_PYTHON", _CHECKOUT / ".venv-vllm" / "bin" / "python"))
    if not path.exists():
        raise BadInput(
            "vLLM is not installed: `make test-vllm` builds .venv-vllm, or set VLLM_PYTHON"
        )
    return path


def run(options: BenchOptions) -> Result:
    """Every arm at every length."""
    python = vllm_python()
    lengths = LENGTHS[:1] if options.quick else LENGTHS
    rounds = options.pairs or (1 if options.quick else 5)
    arms = options.arms or ((OFF, MEMORY, DISK) if options.quick else ARMS)
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise BadInput(f"no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    times: Times = defaultdict(list)
    answers: dict[tuple[int, int], set[int]] = defaultdict(set)
    with tempfile.TemporaryDirectory(prefix="kdn-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        absent: dict[str, str] = {}
        model = _model(options, scratch)
        connectors = _connectors(scratch, stack, absent, arms)
        for arm in arms:
            if arm in absent:
                continue
            options.say(f"{arm}: starting vLLM")
            try:
                _measure(arm, python, model, connectors.get(arm), scratch, lengths, rounds, options,
                         times, answers)  # fmt: skip
            except EngineFailed as error:
                absent[arm] = str(error)
    return Result(
        bench="vllm",
        model=str(options.model) if _is_folder(options) else "SmolLM2-135M's shape, random weights",
        machine=describe_machine(),
        config=options.describe() | {"rounds": rounds, "arms": ", ".join(arms)},
        rows=_rows(times, arms, lengths),
        summary=_summary(times, lengths),
        notes=_notes(absent, answers),
        figures=(_figure(times, arms, lengths),),
    )


def _is_folder(options: BenchOptions) -> bool:
    return Path(options.model).is_dir()


def _model(options: BenchOptions, scratch: Path) -> Path:
    if _is_folder(options):
        return Path(options.model)
    return write_tiny_model(scratch / "model", "llama", options.seed, **SHAPE)


def _connectors(
    scratch: Path, stack: ExitStack, absent: dict[str, str], arms: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The transfer configuration of each arm; servers that they need run until the end."""
    found = {
        MEMORY: _kdn({"memory_bytes": 4 << 30}),
        DISK: _kdn({"memory_bytes": 0, "folder": str(scratch / "store")}),
        EXAMPLE: {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(scratch / "example")},
        },
        LMCACHE: {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"},
    }
    if REDIS in arms:
        why: dict[str, str] = {}
        url = start_redis(scratch, stack, why)
        if url is None:
            absent[REDIS] = why["redis"]
        found[REDIS] = _kdn({"memory_bytes": 0, "redis_url": url, "far_timeout_s": 30})
    if NODE in arms:
        node = start_node(scratch, stack)
        found[NODE] = _kdn({"memory_bytes": 0, "peer_url": node, "far_timeout_s": 30})
    return found


def _kdn(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "kv_connector": "KdnConnector",
        "kv_connector_module_path": "kdn.scale.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }


def _measure(
    arm: str,
    python: Path,
    model: Path,
    connector: dict[str, Any] | None,
    scratch: Path,
    lengths: Sequence[int],
    rounds: int,
    options: BenchOptions,
    times: Times,
    answers: dict[tuple[int, int], set[int]],
) -> None:
    engine = _VllmArm(_command(python, model, connector, options), scratch / "vllm.log")
    try:
        engine.ask(_prompt(options.seed, 0, 256))  # what is made at the first request
        for turn in range(rounds):
            for length in lengths:
                prompt = _prompt(options.seed, turn + 1, length)
                for way in (NEW, AGAIN, HIT):
                    if way == HIT:
                        engine.settle()
                    answer = engine.ask(prompt)
                    if way == HIT and not answer["cached"]:
                        continue  # nothing came back: not a hit
                    times[arm, length, way].append(float(answer["seconds"]))
                    answers[turn, length].add(int(answer["token"]))
                engine.settle()
    finally:
        engine.close()


def _command(
    python: Path, model: Path, connector: dict[str, Any] | None, options: BenchOptions
) -> list[str | Path]:
    given = {
        "model": str(model),
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": LENGTHS[-1] + 64,
        "max_num_batched_tokens": LENGTHS[-1] + 64,
        "kv_transfer_config": connector,
        "seed": 0,
    }
    settings = [
        "VLLM_ENABLE_V1_MULTIPROCESSING=0",
        "VLLM_CPU_KVCACHE_SPACE=2",
        "VLLM_CPU_OMP_THREADS_BIND=nobind",
        "PYTHONHASHSEED=0",
        f"OMP_NUM_THREADS={options.threads}",
        "HF_HUB_OFFLINE=1",
        f"PYTHONPATH={_SOURCE}",
    ]
    program: list[str | Path] = [python, "-m", "kdn.bench.scale.vllm_driver"]
    return ["env", *settings, *program, msgspec.json.encode(given).decode()]


def _prompt(seed: int, number: int, length: int) -> list[int]:
    """Tokens that no other prompt begins with."""
    rng = random.Random(f"{seed}/{number}/{length}")
    return [rng.randrange(250) for _ in range(length)]


def _median(times: Times, arm: str, length: int, way: str) -> float | None:
    found = times.get((arm, length, way))
    return median(found) if found else None


def _rows(times: Times, arms: Sequence[str], lengths: Sequence[int]) -> list[Row]:
    return [
        {
            "tokens": length,
            "arm": arm,
            "new ms": _ms(_median(times, arm, length, NEW)),
            "vLLM's own cache ms": _ms(_median(times, arm, length, AGAIN)),
            "hit of the store ms": _ms(_median(times, arm, length, HIT)),
        }
        for length in lengths
        for arm in arms
        if (arm, length, NEW) in times
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _summary(times: Times, lengths: Sequence[int]) -> dict[str, float | None]:
    at = 2048 if 2048 in lengths else lengths[-1]
    cold = _median(times, OFF, at, NEW)
    hits = {arm: _median(times, arm, at, HIT) for arm in ARMS}
    missed = _median(times, MEMORY, at, NEW)
    return {
        "hit_speedup_2048": _over(cold, hits[MEMORY]) if at == 2048 else None,
        "hit_speedup_disk": _over(cold, hits[DISK]),
        "hit_speedup_lmcache": _over(hits[LMCACHE], hits[NODE]),
        "hit_speedup_example": _over(hits[EXAMPLE], hits[DISK]),
        "miss_cost": None if cold is None or missed is None else missed / cold - 1,
    }


def _over(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else theirs / ours


_MEANING = (
    "`hit_speedup_2048` is vLLM's full prefill over a hit of kdn's memory, `hit_speedup_example` and"
    " `hit_speedup_lmcache` their hit over kdn's from the disk and from a node; `miss_cost` is what a new"
    " prompt costs more with the connector on. `--quick` measures the others at 512."
)


def _notes(
    absent: Mapping[str, str], answers: Mapping[tuple[int, int], set[int]]
) -> tuple[str, ...]:
    differ = sum(len(tokens) > 1 for tokens in answers.values())
    told = (
        f"{differ} of {len(answers)} prompts had answers that differ between arms or ways, in bf16."
    )
    notes = [_MEANING, told]
    notes += [f"Absent: {arm} ({why[:200]})." for arm, why in absent.items()]
    return tuple(notes)


def _figure(times: Times, arms: Sequence[str], lengths: Sequence[int]) -> Figure:
    lines = {
        f"{arm}, {way}": [
            (float(length), seconds)
            for length in lengths
            if (seconds := _median(times, arm, length, way)) is not None
        ]
        for arm in arms
        for way in ((NEW, AGAIN) if arm == OFF else (HIT,))
    }
    return Figure("Time to the first token in vLLM", "prompt tokens", "s", lines)
