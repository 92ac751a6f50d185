"""One minute of the campaign that `make soak` runs for ten."""

from __future__ import annotations

import http.client
import os
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.soak.asks import Ask, compared, draw_asks
from tests.soak.campaign import Campaign
from tests.soak.plan import RECOVERY_S, draw_plan
from tests.soak.preload import Preload
from tests.soak.proxy import FaultyProxy
from tests.soak.report import faults_found, table
from tests.soak.servers import Program, child_processes
from tests.soak.watched import Held, Life, cpu_seconds, growth

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc and preloads a library"
)


@linux
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.alone
def test_nothing_is_wrong_or_lost_in_a_minute_of_faults(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, 1, 60.0, per_s=1.0, kills=1, requests_per_s=3, flood_size=40)
    outcome = campaign.run()
    assert faults_found(outcome, light_p99_s=60.0, recovery_s=10.0) == [], table(outcome)
    assert outcome.events > 40
    assert outcome.met.total() > 50
    assert sum(outcome.traffic["right"].values()) > 50


def test_a_seed_draws_the_same_plan_and_the_same_requests() -> None:
    plan = draw_plan(7, 600.0, 1.1, 6)
    assert plan == draw_plan(7, 600.0, 1.1, 6) != draw_plan(8, 600.0, 1.1, 6)
    assert len(plan) == 666
    kills = [fault.at_s for fault in plan if fault.how == "server killed"]
    assert len(kills) == 6
    assert max(kills) < 300 + RECOVERY_S
    assert draw_asks(7) == draw_asks(7) != draw_asks(8)
    assert len({ask.name for ask in draw_asks(7)}) == 168


def test_what_is_compared_is_the_answer_without_its_times() -> None:
    ask = Ask("chat-3", "/v1/chat/completions", {})
    assert ask.kind == "chat"
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    assert compared({"choices": [choice], "id": "x"}) == ["a", "stop"]
    assert compared({"results": [{"index": 2, "relevance_score": 0.5}]}) == [(2, 0.5)]
    assert compared({"data": [{"probability": 0.25}]}) == [0.25]


@linux
def test_the_library_makes_a_disk_fail_in_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    preload = Preload(tmp_path, tmp_path / "in")
    code = (
        "import os, sys, time\n"
        "def attempt(path):\n"
        "    try:\n"
        "        with open(path, 'wb', buffering=0) as file: file.write(b'x' * 100)\n"
        "        with open(path, 'rb', buffering=0) as file:\n"
        "            return os.preadv(file.fileno(), [bytearray(100)], 0)\n"
        "    except OSError as error: return error.strerror\n"
        "print(attempt(sys.argv[1]), attempt(sys.argv[2]), time.time() > 4e9)\n"
    )

    def outcome() -> str:
        read, write = os.pipe()
        paths = [str(tmp_path / "in" / "a"), str(tmp_path / "out")]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", code, *paths],
            {**os.environ, **preload.environment},
            file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
        )
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read().strip()
        os.waitpid(pid, 0)
        return text

    assert outcome() == "100 100 False"
    for how, words in (
        ("ENOSPC while writing", "No space left on device 100 False"),
        ("EIO while reading", "Input/output error 100 False"),
        ("short reads", "50 100 False"),
    ):
        preload.begin("disk", how, 0)
        assert outcome() == words
        preload.end("disk", how)
    preload.begin("clock", "jumps", 3_000_000_000)
    assert outcome() == "100 100 True"
    assert preload.counts()["shorts"] == 1


def test_a_proxy_carries_and_fails_as_it_is_told(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    (tmp_path / "page").write_text("x" * 1000)
    server = Program("web", [*command, "-d", str(tmp_path)], port, tmp_path)
    server.start()
    proxy = FaultyProxy(port)

    def whole() -> bool:
        """Whether the page comes whole; an answer cut within its headers looks like an empty page."""
        url = f"http://127.0.0.1:{proxy.port}/page"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return len(answer.read()) == 1000
        except (OSError, http.client.HTTPException):
            return False

    try:
        assert whole()
        for mode in ("hangs", "refused", "cut"):
            proxy.mode = mode
            assert not whole()
            assert proxy.counts[mode] >= 1
        proxy.mode = None
        assert whole()
    finally:
        proxy.close()
        server.kill()


@linux
def test_a_process_is_watched() -> None:
    life = Life(os.getpid())
    life.look()
    (look,) = life.looks
    assert look.memory_bytes > 1 << 20
    assert look.threads >= threading.active_count()
    assert cpu_seconds(os.getpid()) > 0
    assert child_processes(os.getpid()) is not None
    life.looks = [Held(0, size, 1, 1) for size in (9, 9, 9, 9, 3, 5, 6, 8)]
    assert growth(life)["memory_bytes"] == (4, 7)


def test_a_program_that_has_ended_is_not_started_by_a_late_thread(tmp_path: Path) -> None:
    """As when a fault's end starts Redis again while the campaign ends."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = Program("web", command, port, tmp_path)
    starters = [threading.Thread(target=server.start) for _ in range(8)]
    for thread in starters:
        thread.start()
    server.end()
    for thread in starters:
        thread.join()
    server.start()
    assert not server.is_alive()
    found = Path("/proc")
    running = (
        [one for one in found.glob("[0-9]*") if _runs(one, str(port))] if found.exists() else []
    )
    assert running == []


def _runs(process: Path, word: str) -> bool:
    try:
        return word.encode() in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
