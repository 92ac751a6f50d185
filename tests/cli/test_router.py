"""`kdn router` as a program: its address, its end, and what it refuses."""

from __future__ import annotations

import json
import signal
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.cli.program import finish, kdn, start


def test_the_router_tells_its_address_and_ends_in_good_order(tmp_path: Path) -> None:
    """Nothing listens behind it: it lives, and says that it is not ready."""
    options = ("--server", "http://127.0.0.1:9", "--server", "http://127.0.0.1:1", "--port", "0")
    program = start(tmp_path, "router", *options, "--json")
    assert program.stdout is not None
    told = json.loads(program.stdout.readline())
    assert told["servers"] == ["http://127.0.0.1:9", "http://127.0.0.1:1"]
    assert told["rule"] == "kv-aware"
    body = {"model": "m", "prompt": "Hello"}
    answer = httpx.post(f"{told['url']}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("no server of 'm' answers (2 are known")
    assert httpx.get(f"{told['url']}/health", timeout=60).status_code == 503
    told_of = httpx.get(f"{told['url']}/metrics", timeout=60).text
    assert 'kdn_router_up{server="http://127.0.0.1:9"} 0.0' in told_of
    answer = httpx.post(f"{told['url']}/v1/completions", content=b"no", timeout=60)
    assert answer.status_code == 400
    program.send_signal(signal.SIGTERM)
    done = finish(program)
    assert done.code == 0
    assert "Traceback" not in done.err


def test_the_router_asks_for_each_key_of_the_settings(tmp_path: Path) -> None:
    """One on loopback that overlooked them would lend its servers' key to every program here."""
    (tmp_path / "keys").write_text(sha256(b"three").hexdigest() + "\n")
    (tmp_path / "kdn.toml").write_text(
        f'[serve]\napi_key = "one"\nsalted_keys = ["blue=two"]\nkey_file = "{tmp_path / "keys"}"\n'
    )
    options = ("--server", "http://127.0.0.1:9", "--port", "0")
    done = kdn(tmp_path, "router", *options, "--server-key", "lent")
    assert done.code == 2
    assert "the servers take all callers for one: leave --server-key out" in done.err
    program = start(tmp_path, "router", *options, "--json")
    try:
        assert program.stdout is not None
        url = json.loads(program.stdout.readline())["url"]
        for sent in ("one", "two", "three", "four", ""):
            answer = httpx.post(
                f"{url}/v1/completions",
                json={"model": "m", "prompt": "Hello"},
                headers={"authorization": f"Bearer {sent}"} if sent else {},
                timeout=60,
            )
            # a known caller is told that nothing listens at the server
            assert answer.status_code == (503 if sent in ("one", "two", "three") else 401), sent
    finally:
        program.send_signal(signal.SIGTERM)
        finish(program)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--server", "http://a:1", "--rule", "fastest"), "no routing rule 'fastest'"),
        (("--server", "a:1"), "is no address; write http://HOST:PORT"),
        (("--server", "http://a:99999"), "is no address; write http://HOST:PORT"),
        (("--server", "http://a:1", "--server", "http://a:1"), "name one or more, each once"),
        (("--server", "http://a:1", "--host", "0.0.0.0"), "no API key is set"),
        ((), "Missing option '--server'"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = kdn(tmp_path, "router", *options, "--port", "0")
    assert done.code == 2
    assert sentence in done.err
