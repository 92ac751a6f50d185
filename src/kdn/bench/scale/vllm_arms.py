"""The vLLMs that are compared: one without a connector, and one for each place where KV can lie.

All run at the same time, each in a process of its own, and take turns: the speed of a machine drifts, and
two measurements side by side drift together.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import RivalProcess
from kdn.bench.store.far import start_lmcache, start_node, start_redis
from kdn.errors import BadInput, EngineFailed

__all__ = [
    "ARMS",
    "DISK",
    "EXAMPLE",
    "LENGTHS",
    "LMCACHE",
    "MEMORY",
    "NODE",
    "OFF",
    "OURS",
    "REDIS",
    "FirstToken",
    "VllmArm",
    "random_prompt",
    "start_arms",
    "vllm_python",
]

LENGTHS = (512, 1024, 2048, 4096)
OFF, EXAMPLE, LMCACHE = "no connector", "ExampleConnector", "LMCache"
MEMORY, DISK, REDIS, NODE = "kdn memory", "kdn disk", "kdn Redis", "kdn node"
OURS = (MEMORY, DISK, REDIS, NODE)
ARMS = (OFF, *OURS, EXAMPLE, LMCACHE)
_SOURCE = Path(__file__).parents[3]
_CHECKOUT = _SOURCE.parent
_BLOCKS = 48
"""vLLM's own blocks of 128 tokens: the longest prompt and a second one that shares half of it."""


@dataclass(frozen=True)
class FirstToken:
    """One answer of one token."""

    seconds: float
    cached: int
    """Tokens of the prompt that were not computed."""
    token_id: int


class VllmArm(RivalProcess):
    """A vLLM in its own environment."""

    def ask(
        self,
        prompt: Sequence[int],
        salt: str | None = None,
        params: Mapping[str, object] | None = None,
    ) -> FirstToken:
        """The first token of a prompt."""
        told = self._ask(op="ask", prompt=list(prompt), salt=salt, params=params)
        return FirstToken(float(told["seconds"]), int(told["cached"]), int(told["token"]))

    def settle(self) -> None:
        """Have all stored, and vLLM's own cache emptied. Raises EngineFailed when it does not empty."""
        if not self._ask(op="settle")["reset"]:
            raise EngineFailed("vLLM's own cache did not empty")


def vllm_python() -> Path:
    """The Python that has vLLM: `VLLM_PYTHON`, or that of `make test-vllm`. Raises BadInput without."""
    path = Path(os.environ.get("VLLM_PYTHON", _CHECKOUT / ".venv-vllm" / "bin" / "python"))
    if not path.exists():
        raise BadInput(
            "vLLM is not installed: `make test-vllm` builds .venv-vllm, or set VLLM_PYTHON"
        )
    return path


def start_arms(
    names: Sequence[str],
    python: Path,
    model: Path,
    options: BenchOptions,
    scratch: Path,
    stack: ExitStack,
) -> tuple[dict[str, VllmArm], dict[str, str]]:
    """Those that run here, and why the others do not; all end with `stack`.

    Every arm answers a prompt and gets it back from its store before it counts.  Raises EngineFailed
    when vLLM without a connector does not run the model: nothing could be compared then.
    """
    absent: dict[str, str] = {}
    started: dict[str, VllmArm] = {}
    with ThreadPoolExecutor(2) as pool:  # each keeps a processor busy for its first seconds
        starting = {
            name: pool.submit(
                _start, name, _connector(name, python, scratch, stack), python, model, options, scratch
            )
            for name in names
        }  # fmt: skip
        for name, begun in starting.items():
            try:
                started[name] = begun.result()
                stack.callback(started[name].close)
                _try(name, started[name], options.seed)
            except EngineFailed as error:
                absent[name] = str(error)
                options.say(f"{name} is absent: {error}")
    if OFF in absent:
        raise EngineFailed(f"vLLM does not run this model here: {absent[OFF]}")
    return {name: arm for name, arm in started.items() if name not in absent}, absent


def random_prompt(seed: int, purpose: str, length: int) -> list[int]:
    """Tokens that no other prompt begins with; every vocabulary has them."""
    rng = random.Random(f"{seed}/{purpose}/{length}")
    return [rng.randrange(250) for _ in range(length)]


def _try(name: str, arm: VllmArm, seed: int) -> None:
    """Ask once with and once without stored KV. Raises EngineFailed for a store that gives nothing."""
    prompt = random_prompt(seed, "first", LENGTHS[0])
    arm.ask(prompt)
    arm.settle()
    found = arm.ask(prompt)
    arm.settle()
    if name != OFF and not found.cached:
        raise EngineFailed("a prompt that it was to have stored was computed again")


def _start(
    name: str,
    connector: Callable[[], dict[str, Any] | None],
    python: Path,
    model: Path,
    options: BenchOptions,
    scratch: Path,
) -> VllmArm:
    command = _command(name, python, model, connector(), options)
    options.say(f"{name}: starting vLLM")
    return VllmArm(command, scratch / f"{name}.log")


def _connector(
    name: str, python: Path, scratch: Path, stack: ExitStack
) -> Callable[[], dict[str, Any] | None]:
    """What gives an arm's transfer configuration, with the server that it needs, which ends with `stack`."""

    def far(**settings: object) -> dict[str, Any]:
        return _kdn(memory_bytes=0, far_timeout_s=30, **settings)

    makers: dict[str, Callable[[], dict[str, Any] | None]] = {
        OFF: lambda: None,
        MEMORY: lambda: _kdn(memory_bytes=1 << 30),
        DISK: lambda: _kdn(memory_bytes=0, folder=str(scratch / "store")),
        REDIS: lambda: far(redis_url=_redis(scratch, stack)),
        NODE: lambda: far(peer_url=start_node(scratch, stack)),
        EXAMPLE: lambda: {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(scratch / "example")},
        },
        LMCACHE: lambda: {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": start_lmcache(python, scratch, stack),
            },
        },
    }
    return makers[name]


def _redis(scratch: Path, stack: ExitStack) -> str:
    absent: dict[str, str] = {}
    url = start_redis(scratch, stack, absent)
    if url is None:
        raise EngineFailed(absent["redis"])
    return url


def _kdn(**settings: object) -> dict[str, Any]:
    return {
        "kv_connector": "KdnConnector",
        "kv_connector_module_path": "kdn.scale.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }


def _command(
    name: str,
    python: Path,
    model: Path,
    connector: dict[str, Any] | None,
    options: BenchOptions,
) -> list[str | Path]:
    given = {
        "model": str(model),
        "dtype": options.machine_dtype(),
        "enforce_eager": True,
        "max_model_len": LENGTHS[-1] + 64,
        "max_num_batched_tokens": LENGTHS[-1] + 64,
        "num_gpu_blocks_override": _BLOCKS,
        "kv_transfer_config": connector,
        "seed": 0,
    }
    # LMCache's modules break vLLM's search for kernels when both are in one process
    apart = int(name == LMCACHE)
    settings = [
        f"VLLM_ENABLE_V1_MULTIPROCESSING={apart}",
        "VLLM_CPU_KVCACHE_SPACE=1",
        "VLLM_CPU_OMP_THREADS_BIND=nobind",
        "PYTHONHASHSEED=0",
        f"OMP_NUM_THREADS={options.threads}",
        "HF_HUB_OFFLINE=1",
        f"PYTHONPATH={_SOURCE}",
    ]
    program: list[str | Path] = [python, "-m", "kdn.bench.scale.vllm_driver"]
    return ["env", *settings, *program, msgspec.json.encode(given).decode()]
