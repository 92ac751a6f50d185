"""Servers and tiers for the store's benchmark, and prefixes that lie in one tier only."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from kdn import api
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import KdnContestant
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.core import EXACT, BlockId, Prompt, Role, Segment, TokenIds
from kdn.engine import kv_shape
from kdn.errors import EngineFailed
from kdn.store import Block, EncodedBlock, block_ids, encode_block
from kdn.trace import Recorder

__all__ = ["Hits", "opened_with_tiers", "start_lmcache", "start_node", "start_redis"]

NEW_TOKENS = 32
_BYTES = 6 * 1024**3
_START_S = 60.0
_LMCACHE = "lmcache.v1.multiprocess.server"
_HAS_LMCACHE = (
    f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{_LMCACHE}') is None)"
)
_FAULTS = ("store.failed", "store.lost", "store.corrupt")
_NEVER = 1.0
"""Prefill as slow as this never is: what is stored is loaded, whether that pays or not."""


def opened_with_tiers(
    options: BenchOptions, scratch: Path, stack: ExitStack
) -> tuple[api.Kdn, dict[str, str]]:
    """kdn over memory, disk, a Redis, a node and a folder of objects; and who is absent, and why.

    All of it ends with `stack`.
    """
    absent: dict[str, str] = {}
    redis_url = start_redis(scratch, stack, absent)
    config = Config(
        home=options.home or home_folder(os.environ),
        engine=EngineConfig(threads=options.threads, fit_idle_s=0),
        store=StoreConfig(
            prefill_tokens_per_s=_NEVER,
            folder=scratch / "store",
            disk_bytes=_BYTES,
            memory_bytes=_BYTES,
            peer_url=start_node(scratch, stack),
            redis_url=redis_url,
            objects_url=f"file://{scratch / 'objects'}",
            far_timeout_s=30.0,
            far_poll_s=3600.0,
            objects_poll_s=3600.0,
        ),
    )
    noted = options.note(config)
    return stack.enter_context(api.open(options.model, config=noted, trace=Recorder())), absent


class Hits:
    """Prompts whose prefix lies in a chosen tier and nowhere else."""

    def __init__(self, service: api.Kdn, seed: int, folder: Path) -> None:
        decoder = service.model.decoder
        self.service = service
        self.tiers = tuple(tier.name for tier in service.store.tiers)
        self._seed = seed
        self._folder = folder
        self._vocabulary = decoder.config.vocab_size
        self.fingerprint = decoder.fingerprint_with(None)
        self.shape = kv_shape(service.model)

    @property
    def token_bytes(self) -> int:
        return self.shape.token_bytes

    def prompt(self, purpose: str, length: int, number: int) -> TokenIds:
        """Random tokens that depend on the seed and on what they are for, and never repeat."""
        source = random.Random(f"{self._seed}/{purpose}/{length}/{number}")
        lowest = min(100, self._vocabulary // 2)
        return tuple(source.randrange(lowest, self._vocabulary) for _ in range(length))

    def blocks(self, prefix: TokenIds) -> list[EncodedBlock]:
        """The prefix as stored blocks, of small random values: what they are costs no time."""
        prompt = Prompt((Segment(Role.DOCUMENT, prefix),))
        ids = block_ids(prompt, len(prefix), fingerprint=self.fingerprint, recipe=EXACT, salt="")
        return [encode_block(self._block(one)) for one in ids]

    def place(self, tier: str, prefix: TokenIds) -> None:
        """Have `prefix` in `tier` alone, and out of the system's cache of files."""
        store = self.service.store
        for block in self.blocks(prefix):
            store.tenancy.put_into(store.tiers.named(tier), block)
            if tier == "disk":
                self._forget_pages(block.key)
        store.index.refresh()

    def hit_s(self, ours: KdnContestant, tier: str, length: int, number: int) -> float:
        """Seconds to the first token of a prompt whose prefix lies in `tier`."""
        prefix = self.prompt(f"prefix/{tier}", length - NEW_TOKENS, number)
        self.place(tier, prefix)
        seconds, usage = ours.hit_s(prefix, self.prompt(f"rest/{tier}", NEW_TOKENS, number))
        if usage.exact < len(prefix) or set(usage.tiers) != {tier}:
            raise EngineFailed(
                f"a hit in {tier} reused {usage.exact} tokens from {usage.tiers}; {self._faults()}"
            )
        self.forget(prefix)
        return seconds

    def miss_s(self, ours: KdnContestant, prompt: TokenIds) -> float:
        """Seconds to the first token of a prompt that is looked up and not found."""
        return ours.hit_s(prompt[:-NEW_TOKENS], prompt[-NEW_TOKENS:])[0]

    def forget(self, prefix: TokenIds) -> None:
        """Out of every tier."""
        store = self.service.store
        store.flush()
        prompt = Prompt((Segment(Role.DOCUMENT, prefix),))
        names = block_ids(prompt, len(prefix), fingerprint=self.fingerprint, recipe=EXACT, salt="")
        for one in list(names):
            store.drop(one.key)

    def _faults(self) -> str:
        """How many there were by tier, and the first three that the trace remembers."""
        trace = self.service.trace
        told = trace.events() if isinstance(trace, Recorder) else []
        reasons = [f"{e.name}: {e.fields['reason']}" for e in told if e.name in _FAULTS]
        return f"errors: {self.service.store.stat().errors}; {'; '.join(reasons[:3])}"

    def _block(self, block_id: BlockId) -> Block:
        source = random.Random(block_id.num_tokens)
        run = bytes([source.randrange(256), 0x3C]) * (
            block_id.num_tokens * self.shape.layer_token_bytes // 2
        )
        return Block(block_id, self.shape, (run,) * self.shape.num_layers)

    def _forget_pages(self, key: str) -> None:
        path = self._folder / "blocks" / key[:2] / f"{key}.kdn"
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def start_redis(scratch: Path, stack: ExitStack, absent: dict[str, str]) -> str | None:
    """A Redis on a free port that ends with `stack`; its URL, or None with the reason in `absent`."""
    program = shutil.which("redis-server")
    if program is None:
        absent["redis"] = "redis-server is not installed"
        return None
    port = _free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(scratch)], stdout=subprocess.DEVNULL)
    stack.callback(_end, server)
    if not _listens(server, port):
        absent["redis"] = "redis-server does not listen"
        return None
    return f"redis://127.0.0.1:{port}/0"


def start_lmcache(python: Path, scratch: Path, stack: ExitStack) -> int:
    """LMCache's server in the environment of `python`, which ends with `stack`; its port.

    Raises EngineFailed, saying why, where it is not installed or does not start.
    """
    looked: list[str | Path] = [python, "-c", _HAS_LMCACHE]
    if subprocess.run(looked, capture_output=True, check=False).returncode:
        raise EngineFailed("lmcache is not installed beside vLLM; `make rivals` installs both")
    port, log = _free_port(), scratch / "lmcache.log"
    command: list[str | Path] = [python, "-m", _LMCACHE]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--supported-transfer-mode", "engine_driven"]
    command += ["--l1-size-gb", "2", "--eviction-policy", "LRU"]
    with log.open("w") as errors:
        server = subprocess.Popen(command, stdout=errors, stderr=errors)
    stack.callback(_end, server)
    if not _listens(server, port):
        words = log.read_text(errors="replace").strip().splitlines() or ["(none)"]
        raise EngineFailed(f"LMCache's server does not listen; its last words: {words[-1]}")
    return port


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server takes connections; false when it ended, or did not in time."""
    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def start_node(scratch: Path, stack: ExitStack) -> str:
    """A node on a free port, open to all of this machine, that ends with `stack`; its URL."""
    command = [sys.executable, "-m", "kdn", "node", "--port", "0", "--json"]
    command.append("--allow-unauthenticated")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KDN_")}
    environment["KDN_STORE_MEMORY_BYTES"] = str(_BYTES)
    log = stack.enter_context((scratch / "node.log").open("w"))
    server = subprocess.Popen(
        [*command, "--home", str(scratch / "node")],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    stack.callback(_end, server)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise EngineFailed("the node did not start; its log says why")
    url: str = json.loads(line)["url"]
    return url


def _end(server: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()
