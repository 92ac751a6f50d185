"""vLLMs for tests: each a process on one processor, over a tiny model with random weights.

vLLM lives in an environment of its own, which `make test-vllm` builds: the tests run in ours.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kdn.testing import write_tiny_model

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
PROGRAM = Path(__file__).parent / "program.py"
MODEL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "max_position_embeddings": 2048,
}
"""Four heads of 32 over two KV heads; a token's KV in fp32 is 2 KiB."""


@dataclass(frozen=True)
class Answer:
    """What vLLM said to a prompt; `cached` are the tokens it did not compute."""

    tokens: list[int]
    logprobs: list[float]
    cached: int
    reason: str


class VllmFailed(RuntimeError):
    """vLLM answered with an error."""


class Vllm:
    """A vLLM to talk to."""

    def __init__(self, process: subprocess.Popen[str], replies: Any) -> None:
        self._process = process
        self._replies = replies

    def generate(self, *prompts: list[int], **options: Any) -> list[Answer]:
        """Answers to all prompts, which vLLM computes together."""
        found = self.do("generate", prompts=list(prompts), **options)
        return [Answer(**one) for one in found]

    def one(self, prompt: list[int], **options: Any) -> Answer:
        """The answer to one prompt."""
        return self.generate(prompt, **options)[0]

    def settle(self) -> None:
        """Have everything stored, and vLLM's own cache emptied."""
        assert self.do("flush")
        assert self.do("reset")

    def counts(self) -> dict[str, int]:
        """The connector's counters."""
        counts: dict[str, int] = self.do("counts")
        return counts

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._process.kill()

    def do(self, name: str, **options: Any) -> Any:
        """Any command. Raises VllmFailed with what vLLM raised."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, options]) + "\n")
        self._process.stdin.flush()
        line = self._replies.readline()
        if not line:
            raise VllmFailed(f"vLLM ended with {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise VllmFailed(reply["error"])
        return reply["answer"]


@contextmanager
def vllm(
    model: Path,
    settings: dict[str, Any] | None,
    *,
    dtype: str = "float32",
    transfer: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Vllm]:
    """A vLLM with the connector's `settings`, or without a connector; its log goes beside the model."""
    connector = {
        "kv_connector": "KdnConnector",
        "kv_connector_module_path": "kdn.scale.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"memory_bytes": 1 << 26} | (settings or {}),
    } | (transfer or {})
    given = {
        "model": str(model),
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_batched_tokens": 2048,
        "kv_transfer_config": None if settings is None else connector,
        "disable_log_stats": False,
        "seed": 0,
    } | options
    if not PYTHON.exists():
        pytest.skip("vLLM is not installed (make test-vllm builds .venv-vllm)")
    read, write = os.pipe()
    with (
        _environment() as environment,
        (model / "vllm.log").open("a") as log,
        os.fdopen(read) as replies,
        subprocess.Popen(
            [str(PYTHON), str(PROGRAM), str(write)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            env=environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            text=True,
        ) as process,
    ):
        os.close(write)
        try:
            engine = Vllm(process, replies)
            engine.do("start", **given)
            yield engine
            with contextlib.suppress(VllmFailed, OSError):
                engine.do("close")
        finally:
            process.kill()
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # what it did not read is lost with it
                process.stdin.close()


@contextmanager
def vllm_server(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`vllm serve` on a free port of loopback; its address, once it answers."""
    if not PYTHON.exists():
        pytest.skip("vLLM is not installed (make test-vllm builds .venv-vllm)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
        *options,
    ]
    with _environment() as environment, (model / "vllm-server.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=3)) as client:
                waited = threading.Event()
                while not _is_well(client, url):
                    if process.poll() is not None:
                        raise VllmFailed((model / "vllm-server.log").read_text()[-2000:])
                    waited.wait(0.5)
            yield url, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """For a vLLM on one processor; its sockets and rendezvous files, which it leaves, go at the end."""
    kept = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    with tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True) as folder:
        yield os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "TMPDIR": folder,
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(kept)),
        }


def _is_well(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


def tiny(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama."""
    return write_tiny_model(folder, "llama", seed, **MODEL)


def text(name: str, length: int) -> list[int]:
    """Tokens that another name does not share."""
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 100_003
    return [(seed + 7919 * place * place + 13 * place) % 250 for place in range(length)]
