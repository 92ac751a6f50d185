"""A congestion rule and a queue are one new file and one line each: two made-up ones are added to a copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kdn

RULE = '''
"""Four packets in flight, whatever happens."""

from kdn.net.world.compiled import compiled
from kdn.net.world.control.rule import Rule, ignore, ignore_loss, ignore_mark


@compiled
def on_acked(flow, size, grown, rtt, rate, sent_in_round, now):
    flow.cwnd = 4.0 * flow.size


FOUR = Rule("four", on_acked, ignore_mark, ignore_loss, ignore)
'''

QUEUE = '''
"""Two packets wait; a third is dropped."""

from kdn.net.world.compiled import compiled
from kdn.net.world.queue.discipline import Discipline
from kdn.net.world.queue.lists import append_c, take_c
from kdn.net.world.records import NIL


@compiled
def _enqueue(state, hop, packet, now):
    if state.hops[hop].len_c == 2:
        state.hops[hop].overflowed += 1
        return False
    append_c(state, hop, packet, now)
    return True


@compiled
def _dequeue(state, hop, now):
    return take_c(state, hop) if state.hops[hop].len_c > 0 else NIL


TWO_PLACES = Discipline("two places", _enqueue, _dequeue)
'''

RUN = """
import json
from kdn.net.world import Flow, Hop, Queue, Scenario, World, constant, steady

def run(flow, queue):
    world = World(Scenario("made up", (Hop(constant(12e6), queue),), (flow,), seconds=4.0))
    world.run()
    world.check()
    log = world.log()
    longest = max(log["t_deliver"] - log["t_send"]) / 1e6
    return world.totals(0).goodput_mbps, longest, world.totals(0).lost / world.totals(0).sent

four = run(Flow("four", "ect0", in_ms=10.0, logged=True), Queue("droptail"))
twice = run(Flow("unresponsive", "ect0", steady(24.0), logged=True), Queue("two places"))
print(json.dumps([four, twice]))
"""


def _add(init: Path, file: str, source: str, old: str, new: str) -> None:
    """One file, and one line that names it."""
    (init.parent / f"{file}.py").write_text(source)
    text = init.read_text()
    assert text.count(old) == 1
    init.write_text(text.replace(old, new))


def test_a_made_up_rule_and_a_made_up_queue_run(tmp_path: Path) -> None:
    package = Path(kdn.__file__).parent
    for part in ("net/world", "net/__init__.py", "errors.py"):
        target = tmp_path / "kdn" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (package / part).is_dir():
            shutil.copytree(package / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(package / part, target)
    (tmp_path / "kdn" / "__init__.py").touch()
    world = tmp_path / "kdn" / "net" / "world"
    _add(
        world / "control" / "__init__.py",
        "four",
        RULE,
        "RULES = (RENO,",
        "from kdn.net.world.control.four import FOUR\n\nRULES = (FOUR, RENO,",
    )
    _add(
        world / "queue" / "__init__.py",
        "two",
        QUEUE,
        "QUEUES = (DROPTAIL,",
        "from kdn.net.world.queue.two import TWO_PLACES\n\nQUEUES = (TWO_PLACES, DROPTAIL,",
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    four, twice = json.loads(done.stdout)
    # Four packets of 12,000 bits per 20 ms and 1 ms on the link: 2.29 Mbit/s (the first rounds have more).
    assert 2.2 < four[0] < 2.4
    # Twice the link's rate: half is lost, and a packet waits for two others and for itself, 1 ms each.
    assert 0.45 < twice[2] < 0.55
    assert twice[1] <= 3.0
