"""What a server may be set to, and where the bounds that were set end up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kdn.config import ServeConfig, load_config
from kdn.errors import BadConfig
from kdn.serve import Limits, ServeSettings, is_loopback


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.0.2.7", False),
        ("127.example", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("0x7f000001", False),
        ("", False),
    ],
)
def test_addresses_are_parsed_not_compared_by_their_beginning(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_bounds_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "kdn.toml").write_text(
        """
        [serve]
        max_body_bytes = "1 MiB"
        max_requests = 10
        grace_s = 3
        salted_keys = ["alice+team=K1"]
        key_file = "keys"
        """
    )
    config = load_config({"KDN_SERVE_MAX_TOKENS": "500"}, home=tmp_path).serve
    limits = Limits.of(config)
    assert (limits.body_bytes, limits.all_requests, limits.caller_requests) == (1 << 20, 10, 5)
    assert (limits.all_tokens, limits.caller_tokens) == (500, 250)
    assert (config.grace_s, config.salted_keys) == (3, ("alice+team=K1",))
    assert config.key_file == Path("keys")
    with pytest.raises(BadConfig, match="all_bytes is 0"):
        Limits(all_bytes=0)


def test_each_default_stands_once() -> None:
    assert Limits.of(ServeConfig()) == Limits()


def test_a_reachable_address_wants_a_key_of_any_kind(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no API key"):
        ServeSettings(host="0.0.0.0")
    file = tmp_path / "keys"
    file.write_text(f"{hashlib.sha256(b'secret').hexdigest()} alice # hers\n")
    for settings in (
        ServeSettings(host="0.0.0.0", api_keys=("k",)),
        ServeSettings(host="0.0.0.0", salted_keys=("alice=k",)),
        ServeSettings(host="0.0.0.0", key_file=file),
        ServeSettings(host="0.0.0.0", allow_unauthenticated=True),
    ):
        assert settings.guards_host is False
    assert ServeSettings().guards_host is True
    assert ServeSettings(api_keys=("made for this run",), check_host=True).guards_host is True
