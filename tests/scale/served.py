"""Real `kdn serve` programs over loopback, each a process of its own, and routers in this one."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from kdn.scale.router.app import RouterSettings, create_router_app
from kdn.serve import ServeSettings, listen, make_server, url_of
from tests.cli.program import finish, start

Served = list[tuple[str, subprocess.Popen[str]]]


@contextmanager
def served(
    folder: Path, model: Path, num_servers: int = 1, options: tuple[str, ...] = ()
) -> Iterator[Served]:
    """`kdn serve`, each in a process of its own; their addresses."""
    programs = [
        start(folder / str(number), "serve", "--model", model, "--port", "0", "--json", *options)
        for number in range(num_servers)
    ]
    try:
        yield [(_url(program), program) for program in programs]
    finally:
        for program in programs:
            program.kill()
            finish(program)


def _url(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return str(json.loads(program.stdout.readline())["url"])


@contextmanager
def routed(*servers: str, rule: str = "kv-aware", key: str | None = None) -> Iterator[httpx.Client]:
    """A router in this process on a free port, and a client that sends its key."""
    settings = ServeSettings(port=0, grace_s=5, api_keys=() if key is None else (key,))
    router = RouterSettings(servers, rule, health_s=0.2, health_timeout_s=60)
    app = create_router_app(router, settings)
    with listen(settings) as listening:
        server = make_server(app, settings, log_level="warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            with httpx.Client(base_url=url_of(listening), headers=headers, timeout=120) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def until(told: Callable[[], Any], seconds: float = 30) -> bool:
    """Does it become true in time?"""
    end = monotonic() + seconds
    while monotonic() < end:
        if told():
            return True
    return False
