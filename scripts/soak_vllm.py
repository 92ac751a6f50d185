"""A real vLLM with kdn's connector under faults: every answer is compared with vLLM's alone.

Redis is killed, hung and flushed, files are corrupted, the disk is full, vLLM is killed in the middle of
its requests.  Prints a table of what was asked and what came of it; docs/scale.md shows one.  Exit code 1
when an answer differed, or when a fault left no trace in the counters.

VLLM_PYTHON=.venv-vllm/bin/python python scripts/soak_vllm.py --requests 2000
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.scale.vllm.running import Vllm, VllmFailed, text, tiny, vllm
from tests.store.remotes import free_port

TOGETHER = 10
"""Requests that vLLM computes together."""
ROUNDS_A_FAULT = 4
DISK_BYTES = 48 << 20
FAULTS = (
    "none", "Redis hung", "none", "Redis flushed", "files corrupted", "Redis killed", "none", "disk full",
    "vLLM killed",
)  # fmt: skip


@dataclass
class Rig:
    """The vLLM under test, and what it stores into."""

    model: Path
    store: Path
    folder: Path
    port: int = field(default_factory=free_port)
    is_small: bool = False
    """Is the store on a disk of its own that can be filled?"""
    _lives: ExitStack = field(default_factory=ExitStack)
    _redis: subprocess.Popen[bytes] | None = None
    _engine: Vllm | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _last: Counter[str] = field(default_factory=Counter)
    restarts: int = 0

    @property
    def engine(self) -> Vllm:
        """The running vLLM, started when none runs."""
        if self._engine is None:
            settings = {
                "folder": str(self.store),
                "disk_bytes": DISK_BYTES,
                "memory_bytes": 1 << 21,
                "redis_url": f"redis://127.0.0.1:{self.port}/0",
                "far_timeout_s": 0.3,
                "far_poll_s": 0.5,
            }
            self._engine = self._lives.enter_context(vllm(self.model, settings))
        return self._engine

    def note_counts(self) -> None:
        """Add what the connector counted since the last time."""
        now = Counter(self.engine.counts())
        self.counts.update(now - self._last)
        self._last = now

    def kill_engine(self, prompts: list[list[int]]) -> None:
        """Kill vLLM while it computes."""
        engine = self.engine
        timer = threading.Timer(0.1, engine.kill)
        timer.start()
        with contextlib.suppress(VllmFailed, OSError):
            while True:
                engine.generate(*prompts)
        timer.join()
        self._lives.close()
        self._engine, self._last = None, Counter()
        self.restarts += 1

    def start_redis(self) -> None:
        """A Redis that holds nothing yet, at the same address as ever."""
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self._redis = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        client = redis.Redis(port=self.port)
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        client.close()

    def signal_redis(self, what: signal.Signals) -> None:
        """Hang it (SIGSTOP), let it go on (SIGCONT), or kill it."""
        assert self._redis is not None
        self._redis.send_signal(what)
        if what == signal.SIGKILL:
            self._redis.wait()

    def flush_redis(self) -> None:
        """It forgets everything."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def corrupt(self, rng: random.Random) -> None:
        """Flip a bit in the middle of every third file of blocks."""
        files = sorted(one for one in self.store.rglob("*") if one.is_file())
        for path in files:
            if path.stat().st_size > 100_000 and rng.random() < 1 / 3:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 4
                path.write_bytes(data)

    def fill(self) -> None:
        """Leave the disk no room."""
        with contextlib.suppress(OSError), (self.store.parent / "filler").open("wb") as stream:
            while True:
                stream.write(bytes(1 << 16))
                stream.flush()

    def close(self) -> None:
        """End all."""
        self._lives.close()
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    prompts = make_prompts(rng)
    with tempfile.TemporaryDirectory(prefix="kdn-soak-") as name:
        folder = Path(name)
        model = tiny(folder / "model")
        expected = plain_answers(model, prompts)
        with small_disk(folder / "disk") as is_small:
            rig = Rig(model, folder / "disk" / "store", folder, is_small=is_small)
            rig.start_redis()
            try:
                asked, wrong = soak(rig, prompts, expected, options.requests, rng)
            finally:
                rig.close()
    sys.exit(report(rig, asked, wrong))


def make_prompts(rng: random.Random) -> list[list[int]]:
    """Questions about the beginnings of documents."""
    documents = [text(f"document {number}", rng.randint(400, 1000)) for number in range(24)]
    return [
        document[: rng.randint(200, len(document))] + text(f"question {turn}", rng.randint(20, 60))
        for turn, document in enumerate(documents * 10)
    ]


def plain_answers(model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What vLLM says without the connector."""
    with vllm(model, None) as engine:
        return [
            answer.tokens
            for at in range(0, len(prompts), TOGETHER)
            for answer in engine.generate(*prompts[at : at + TOGETHER])
        ]


def soak(
    rig: Rig, prompts: list[list[int]], expected: list[list[int]], requests: int, rng: random.Random
) -> tuple[Counter[str], Counter[str]]:
    """Ask at random under one fault after the other; requests and wrong answers by fault."""
    asked, wrong = Counter[str](), Counter[str]()
    for turn in range(-(-requests // TOGETHER)):
        fault = FAULTS[turn // ROUNDS_A_FAULT % len(FAULTS)]
        if fault == "disk full" and not rig.is_small:
            fault = "none"
        drawn = [rng.randrange(len(prompts)) for _ in range(TOGETHER)]
        given = [prompts[number] for number in drawn]
        begin(rig, fault, turn % ROUNDS_A_FAULT, given, rng)
        answers = rig.engine.generate(*given)
        asked[fault] += len(given)
        wrong[fault] += sum(
            answer.tokens != expected[number] for answer, number in zip(answers, drawn, strict=True)
        )
        rig.engine.do("reset")
        rig.note_counts()
        if turn % ROUNDS_A_FAULT == ROUNDS_A_FAULT - 1:
            end(rig, fault)
    return asked, wrong


def begin(rig: Rig, fault: str, turn: int, given: list[list[int]], rng: random.Random) -> None:
    """Cause a fault: most once for their rounds, corruption in each."""
    if fault == "files corrupted":
        rig.engine.do("flush")
        rig.corrupt(rng)
    if turn:
        return
    causes: dict[str, Callable[[], Any]] = {
        "Redis hung": lambda: rig.signal_redis(signal.SIGSTOP),
        "Redis flushed": rig.flush_redis,
        "Redis killed": lambda: rig.signal_redis(signal.SIGKILL),
        "disk full": rig.fill,
        "vLLM killed": lambda: rig.kill_engine(given),
    }
    causes.get(fault, lambda: None)()


def end(rig: Rig, fault: str) -> None:
    """Put right what was broken."""
    if fault == "Redis hung":
        rig.signal_redis(signal.SIGCONT)
    elif fault == "Redis killed":
        rig.start_redis()
    elif fault == "disk full":
        (rig.store.parent / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 64 MiB, where this system lets us mount one; else a folder, which is never full."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def report(rig: Rig, asked: Counter[str], wrong: Counter[str]) -> int:
    """Print the tables; 1 when anything was wrong or went without a trace."""
    print("| fault | requests | answers that differ |\n|---|---:|---:|")
    for fault in dict.fromkeys(FAULTS):
        print(f"| {fault} | {asked[fault]} | {wrong[fault]} |")
    print(f"| all | {asked.total()} | {wrong.total()} |\n\n| counter | |\n|---|---:|")
    for name, count in rig.counts.items():
        print(f"| `{name}` | {count} |")
    print(f"| starts of vLLM | {rig.restarts + 1} |", flush=True)
    seen = ("hit_tokens", "loaded_tokens", "failed_tokens", "saved_blocks")
    silent = [name for name in seen if not rig.counts[name]]
    if silent:
        print(f"nothing was counted as {', '.join(silent)}: the faults did not reach the connector")
    return int(bool(wrong.total() or silent))


if __name__ == "__main__":
    main()
