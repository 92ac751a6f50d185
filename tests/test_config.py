"""Settings: where they come from, which one wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.config import home_folder, load_config, parse_bytes
from kdn.errors import BadConfig


def test_defaults_need_no_file(tmp_path: Path) -> None:
    config = load_config({}, home=tmp_path)
    assert config.serve.host == "127.0.0.1"
    assert config.store_folder == tmp_path / "store"
    assert config.library_folder == tmp_path / "library"


def test_environment_wins_over_file(tmp_path: Path) -> None:
    (tmp_path / "kdn.toml").write_text(
        '[serve]\nport = 9000\nhost = "::1"\n[store]\nmemory_bytes = "8 GiB"\nfolder = "kept"\n'
    )
    config = load_config({"KDN_SERVE_PORT": "9001", "PATH": "/bin"}, home=tmp_path)
    assert (config.serve.port, config.serve.host) == (9001, "::1")
    assert config.store.memory_bytes == 8 * 1024**3
    assert config.store_folder == Path("kept")


def test_home_comes_from_the_environment(tmp_path: Path) -> None:
    assert home_folder({"KDN_HOME": str(tmp_path)}) == tmp_path
    assert load_config({"KDN_HOME": str(tmp_path)}).home == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engin]\n", r"no section \[engin\]; did you mean engine\?"),
        ("[store]\ndisk_byte = 1\n", "no setting 'disk_byte' in .store.; did you mean disk_bytes"),
        ("[serve]\nport = 70000\n", "<= 65535"),
        ('[engine]\ndtype = "bf17"\n', "bf17"),
        ('[store]\ndisk_bytes = "much"\n', "'much' is no size"),
        ("[engine\n", "not a TOML file"),
        ("engine = 3\n", r"no section \[engine\]"),
    ],
)
def test_wrong_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "kdn.toml").write_text(text)
    with pytest.raises(BadConfig, match=message):
        load_config({}, home=tmp_path)


def test_wrong_variables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="KDN_ENGINE_DTIPE; did you mean KDN_ENGINE_DTYPE"):
        load_config({"KDN_ENGINE_DTIPE": "float32"}, home=tmp_path)
    with pytest.raises(BadConfig, match="threads"):
        load_config({"KDN_ENGINE_THREADS": "none"}, home=tmp_path)


def test_a_cluster_that_has_a_service_called_kdn_is_no_mistake(tmp_path: Path) -> None:
    links = {"KDN_SERVICE_HOST": "10.0.0.1", "KDN_PORT": "tcp://10.0.0.1:80", "KDN_PORT_80_TCP": ""}
    assert load_config(links, home=tmp_path).serve.port == 8000


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config({}, home=tmp_path, file=tmp_path / "other.toml")
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config({"KDN_CONFIG": str(tmp_path / "other.toml")}, home=tmp_path)


def test_effective_settings_are_plain_and_keep_the_secret(tmp_path: Path) -> None:
    config = load_config({"KDN_SERVE_API_KEY": "hush"}, home=tmp_path)
    shown = config.effective()
    assert shown["serve"]["api_key"] == "(set)"
    assert shown["store"]["folder"] == str(tmp_path / "store")
    assert config.serve.api_key == "hush"


def test_sizes() -> None:
    assert parse_bytes("20 GB") == 20_000_000_000
    assert parse_bytes("1.5kib") == 1536
    assert parse_bytes("7") == 7
    with pytest.raises(ValueError, match="no size"):
        parse_bytes("-1")
