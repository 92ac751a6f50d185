"""A campaign from start to end: the right answers first, then the same traffic under the plan of faults."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdn.testing import write_tiny_model
from tests.soak.asks import stored_text
from tests.soak.plan import Fault, draw_plan
from tests.soak.preload import Preload
from tests.soak.proxy import FaultyProxy
from tests.soak.servers import (
    BUCKET,
    ROOT,
    Program,
    answers,
    child_processes,
    kdn_program,
    redis_program,
    s3_program,
)
from tests.soak.traffic import Order
from tests.soak.watched import Life, cpu_seconds, growth

__all__ = ["Campaign", "Outcome"]

KEY = "soak-admin-key"
QUICK = b'{"prompt": "1?", "max_tokens": 1, "temperature": 0}'
GRACE_S = 5
TAIL_S = 15.0
"""After the last fault traffic goes on for so long."""


@dataclass
class Outcome:
    """What a campaign found."""

    seed: int
    seconds: float
    planned: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    """Fault events of the plan that took place."""
    met: Counter[str] = field(default_factory=Counter)
    """Calls, connections and pieces that met a fault."""
    traffic: dict[str, Any] = field(default_factory=dict)
    recoveries_s: list[float] = field(default_factory=list)
    """From kill -9 of the server to its next right answer, its start included."""
    recoveries_cpu_s: list[float] = field(default_factory=list)
    """What of it the server's processors worked: the same on a machine that is shared."""
    down_s: list[tuple[float, float]] = field(default_factory=list)
    refused_starts: int = 0
    """Starts that a failing disk refused with its sentence; they are tried again."""
    unexpected_ends: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    stop_code: int | None = None
    stop_s: float = 0.0
    verified_blocks: int = 0
    corrupt: list[str] = field(default_factory=list)
    """What a verification found that the plan did not damage."""
    lost: list[int] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    """Of the longest life, every ten seconds."""
    held: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return self.struck.total()

    @property
    def unexplained_cuts(self) -> list[str]:
        """Connections that were cut while no server was killed: how, and how long after it began to serve."""
        found = []
        for cut_s, why in zip(self.traffic["cuts_s"], self.traffic["cut_whys"], strict=True):
            if not any(begin - 1 <= cut_s <= end + 2 for begin, end in self.down_s):
                since_s = cut_s - max(
                    (end for _, end in self.down_s if end <= cut_s), default=cut_s
                )
                found.append(f"{why}, {since_s:.1f} s after a start")
        return found


class Campaign:
    """One run in `work`. `seed` fixes the plan, the requests and their order."""

    def __init__(
        self,
        work: Path,
        seed: int,
        seconds: float,
        *,
        per_s: float,
        kills: int,
        requests_per_s: float = 4.0,
        flood_size: int = 100,
    ) -> None:
        """`per_s` faults a second. Traffic is `requests_per_s`, and a flood every twenty seconds."""
        self.work = work
        self._requests_per_s = requests_per_s
        self._flood_size = flood_size
        self.plan = draw_plan(seed, max(seconds - TAIL_S, seconds / 2), per_s, kills)
        self.outcome = Outcome(seed, seconds, planned=len(self.plan))
        self._rng = random.Random(seed)
        self._model = write_tiny_model(
            work / "model",
            "llama",
            hidden_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=3,
            max_position_embeddings=4096,
        )
        self._home = work / "home"
        self._folder = self._home / "store"
        self._preload = Preload(work, self._folder)
        self._damaged: set[str] = set()
        self._lives: list[Life] = []
        self._server_lock = threading.Lock()
        self._stopped = threading.Event()
        self._helpers: list[threading.Thread] = []

    def run(self) -> Outcome:
        """Returns what was found; raises nothing for what went wrong under way."""
        expected = self._record()
        with self._programs() as (server, remotes):
            self._time_recovery(server, time.monotonic(), is_kill=False)
            traffic = self._start_traffic(server, expected)
            watcher = threading.Thread(target=self._watch, args=(server,))
            watcher.start()
            self._strike_all(server, remotes)
            out, _ = traffic.communicate(timeout=self.outcome.seconds + 120)
            self._stopped.set()
            for helper in (watcher, *self._helpers):
                helper.join()
            self.outcome.traffic = json.loads(out)
            self.outcome.stop_code, self.outcome.stop_s = server.stop(60)
            self._count_met(remotes)
            self.outcome.tracebacks = sorted(
                {*_tracebacks(server), *_tracebacks(remotes["node"][0])}
            )
        self._audit()
        longest = max(self._lives, key=lambda life: len(life.looks))
        self.outcome.held = growth(longest)
        self.outcome.memory_bytes = [look.memory_bytes for look in longest.looks[::20]]
        return self.outcome

    # --- before ---

    def _record(self) -> dict[str, Any]:
        home = self.work / "quiet"
        _write_settings(home, {})
        server = kdn_program("quiet", ["serve", "-m", str(self._model)], home, self.work)
        server.start()
        try:
            order = Order(server.url, KEY, self.outcome.seed, 0.0)
            done = subprocess.run(
                self._traffic_command(order), capture_output=True, check=True, **_TRAFFIC
            )
        finally:
            server.stop(60)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _traffic_command(self, order: Order) -> list[str]:
        path = self.work / "order.json"
        path.write_text(json.dumps(asdict(order)), "utf-8")
        return [sys.executable, "-m", "tests.soak.traffic", str(path)]

    def _start_traffic(self, server: Program, expected: dict[str, Any]) -> subprocess.Popen[bytes]:
        seconds = self.outcome.seconds
        order = Order(server.url, KEY, self.outcome.seed, seconds, expected=expected)
        order.per_s, order.flood_size = self._requests_per_s, self._flood_size
        command = self._traffic_command(order)
        return subprocess.Popen(command, stdout=subprocess.PIPE, **_TRAFFIC)

    @contextmanager
    def _programs(self) -> Iterator[tuple[Program, dict[str, tuple[Program, FaultyProxy]]]]:
        """The server with all its tiers, each across a proxy."""
        node_home = self.work / "node-home"
        _write_settings(node_home, {"store": {"disk_bytes": 64 << 20, "memory_bytes": 8 << 20}})
        node = kdn_program("node", ["node", "--tenant", f"*={KEY}"], node_home, self.work)
        programs = {
            "redis": redis_program(self.work),
            "s3": s3_program(self.work),
            "node": node,
        }
        remotes = {}
        started = list(programs.values())
        try:
            for name, program in programs.items():
                program.start()
                remotes[name] = (program, FaultyProxy(program.port))
            ports = {name: proxy.port for name, (_, proxy) in remotes.items()}
            _write_settings(self._home, _server_settings(ports))
            server = kdn_program(
                "server",
                ["serve", "-m", str(self._model)],
                self._home,
                self.work,
                self._preload.environment,
            )
            started.append(server)
            server.launch()
            yield server, remotes
        finally:
            for program in started:
                program.end()
            for _, proxy in remotes.values():
                proxy.close()

    # --- under way ---

    def _watch(self, server: Program) -> None:
        """Look at the server every half second; start it again when it ends by itself, which is a finding."""
        while not self._stopped.wait(0.5):
            with self._server_lock:
                if not server.is_alive():
                    self.outcome.unexpected_ends.append(server.tail())
                    began_s = time.monotonic() - 0.5
                    server.launch()
                    self._time_recovery(server, began_s, is_kill=False)
                if not self._lives or self._lives[-1].pid != server.pid:
                    self._lives.append(Life(server.pid))
                self._lives[-1].look()

    def _strike_all(self, server: Program, remotes: dict[str, tuple[Program, FaultyProxy]]) -> None:
        """Each fault at its time; its end is one more thing to do at a time."""
        began_s = time.monotonic()
        todo: list[tuple[float, int, Callable[[], None]]] = []
        for number, fault in enumerate(self.plan):
            begin, end = self._acts(fault, server, remotes)
            todo.append((fault.at_s, number, begin))
            if end is not None:
                todo.append((fault.at_s + fault.lasts_s, number, end))
        for at_s, _, act in sorted(todo, key=lambda one: one[:2]):
            self._stopped.wait(max(0.0, began_s + at_s - time.monotonic()))
            act()

    def _acts(
        self, fault: Fault, server: Program, remotes: dict[str, tuple[Program, FaultyProxy]]
    ) -> tuple[Callable[[], None], Callable[[], None] | None]:
        """What begins a fault, and what ends it."""

        def counted(act: Callable[[], object]) -> Callable[[], None]:
            def begin() -> None:
                if act() is not False:
                    self.outcome.struck[fault.name] += 1

            return begin

        if fault.where in remotes:
            program, proxy = remotes[fault.where]
            if fault.how == "killed and started":
                return counted(program.kill), lambda: self._in_background(program.start)

            def heal() -> None:
                proxy.mode = None

            return counted(lambda: setattr(proxy, "mode", fault.how)), heal
        if fault.where in ("disk", "clock"):
            preload = self._preload
            return (
                counted(lambda: preload.begin(fault.where, fault.how, fault.amount)),
                lambda: preload.end(fault.where, fault.how),
            )
        if fault.where == "files":
            return counted(lambda: self._hurt(fault)), None
        if fault.how == "a worker killed":
            return counted(lambda: _kill_worker(server)), None
        return counted(lambda: self._in_background(lambda: self._kill(server))), None

    def _in_background(self, work: Callable[[], None]) -> None:
        """What takes its time must not hold up the end of other faults."""
        thread = threading.Thread(target=work)
        self._helpers.append(thread)
        thread.start()

    def _kill(self, server: Program) -> None:
        with self._server_lock:
            began_s = time.monotonic()
            server.kill()
            server.launch()
            self._time_recovery(server, began_s, is_kill=True)

    def _time_recovery(self, server: Program, began_s: float, *, is_kill: bool) -> None:
        """Until the next right answer."""
        until_s, is_refused = time.monotonic() + 180, False
        while not answers(f"{server.url}/v1/completions", QUICK):
            assert time.monotonic() < until_s, f"the server does not answer: {server.tail()}"
            if not server.is_alive():
                # a store on a disk that fails just now cannot be opened: the watcher tries again
                assert server.tail().rstrip().splitlines()[-1].startswith("kdn: "), server.tail()
                self.outcome.refused_starts += 1
                is_refused = True
                server.launch()
                self._stopped.wait(0.5)
        now_s = time.monotonic()
        self.outcome.down_s.append((began_s, now_s))
        if is_kill and not is_refused:
            self.outcome.recoveries_s.append(now_s - began_s)
            self.outcome.recoveries_cpu_s.append(cpu_seconds(server.pid))

    def _hurt(self, fault: Fault) -> bool:
        """Damage the file of one stored block; False when there is none."""
        files = sorted((self._folder / "blocks").rglob("*.kdn"))
        if not files:
            return False
        path = files[fault.amount % len(files)]
        try:
            if fault.how == "a block removed":
                path.unlink()
            else:
                with path.open("r+b") as file:
                    at = fault.amount % max(os.fstat(file.fileno()).st_size, 1)
                    file.seek(at)
                    old = file.read(1) or b"\0"
                    file.seek(at)
                    file.write(bytes([old[0] ^ 0x55]))
        except FileNotFoundError:
            return False  # evicted meanwhile
        self._damaged.add(path.stem)
        return True

    # --- after ---

    def _count_met(self, remotes: dict[str, tuple[Program, FaultyProxy]]) -> None:
        for name, (_, proxy) in remotes.items():
            for how, count in proxy.counts.items():
                self.outcome.met[f"{name}: {how}"] += count
        for what, count in self._preload.counts().items():
            self.outcome.met[f"disk and clock: {what}"] += count

    def _audit(self) -> None:
        """Open the store without any fault: all of it is whole, and all that was acknowledged is there."""
        import kdn
        from kdn.config import load_config

        config = load_config({"KDN_HOME": str(self._home)}, home=self._home)
        with kdn.open(self._model, config=config) as service:
            report = service.store.verify()
            self.outcome.verified_blocks = report.blocks
            self.outcome.corrupt = [key for key in report.corrupt if key not in self._damaged]
            assert service.store.verify().corrupt == ()
            for number in self.outcome.traffic["stored"]:
                text = stored_text(self.outcome.seed, number)
                match, wanted = service.lookup(text)
                tiers = service.store.tiers
                here = [hit for hit in match.hits if tiers.durable.holds(hit.id.key)]
                if sum(hit.num_tokens for hit in here) < wanted and not self._was_hurt(
                    service, text
                ):
                    self.outcome.lost.append(number)
            service.check()

    def _was_hurt(self, service: Any, text: str) -> bool:
        """Did the plan damage a file of that text's? Told by computing the text once more."""
        service.prefill(text)
        service.store.flush()
        match, _ = service.lookup(text)
        return any(hit.id.key in self._damaged for hit in match.hits)


_TRAFFIC: dict[str, Any] = {
    "cwd": ROOT,
    "env": {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
}


def _kill_worker(server: Program) -> bool:
    """Kill a process that the server started; False when it has none just now."""
    children = child_processes(server.pid)
    for child in children[:1]:
        try:
            os.kill(child, 9)
        except ProcessLookupError:
            return False
    return bool(children)


def _server_settings(ports: dict[str, int]) -> dict[str, dict[str, Any]]:
    return {
        "engine": {
            "kv_budget_bytes": 96 << 20,
            "resident_bytes": 16 << 20,  # else memory grows for the whole campaign, as it may
            "fit_idle_s": 0,
            "threads": 1,
        },
        "serve": {"store_key": KEY, "grace_s": GRACE_S, "max_requests": 300},
        "store": {
            "disk_bytes": 40 << 20,
            "memory_bytes": 8 << 20,
            "redis_url": f"redis://127.0.0.1:{ports['redis']}/0",
            "objects_url": f"s3://{BUCKET}/kv",
            "object_options": {
                "endpoint": f"http://127.0.0.1:{ports['s3']}",
                "region": "us-east-1",
                "access_key_id": "k",
                "secret_access_key": "s",
            },
            "peer_url": f"http://127.0.0.1:{ports['node']}",
            "peer_token": KEY,
            "far_timeout_s": 0.5,
            "objects_poll_s": 5.0,
        },
    }


def _write_settings(home: Path, rooms: dict[str, dict[str, Any]]) -> None:
    home.mkdir(mode=0o700, exist_ok=True)
    rooms = {"engine": {"fit_idle_s": 0}, **rooms}
    lines = []
    for room, settings in rooms.items():
        lines.append(f"[{room}]")
        for name, value in settings.items():
            if isinstance(value, dict):
                inner = ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items())
                lines.append(f"{name} = {{ {inner} }}")
            else:
                lines.append(f"{name} = {json.dumps(value)}")
    (home / "kdn.toml").write_text("\n".join(lines), "utf-8")


def _tracebacks(server: Program) -> list[str]:
    """Exceptions that the server wrote to its log."""
    parts = server.log.read_text("utf-8", "replace").split("Traceback (most recent call last)")
    return sorted({_last_line(part) for part in parts[1:]})


def _last_line(part: str) -> str:
    """The line of a traceback that names its exception."""
    lines = [line for line in part.splitlines() if line and not line.startswith((" ", "\t"))]
    return lines[0][:300] if lines else part[-300:]
