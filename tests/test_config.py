"""Settings: where they come from, which one wins, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdn.config import Config, home_folder, load_config, parse_bytes
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
        ('[engine]\ndtype = "bf17"\n', "engine.dtype is 'bf17'; it can be auto, bfloat16, float16"),
        ('[engine]\npolicy = "lol"\n', "engine.policy is 'lol'; it can be fcfs, priority, .*ratio"),
        (
            '[store]\npolicy = "lol"\n',
            "store.policy is 'lol'; it can be fifo, lru, s3fifo, arc, value",
        ),
        ('[store]\ncodec = "zip"\n', "store.codec is 'zip'; it can be auto, none, lossless, fp8"),
        ("[store]\nmemory_bytes = -1\n", "store.memory_bytes is -1; expected `int` >= 0"),
        ("[store]\nquotas = 3\n", "store.quotas is 3; expected `object`"),
        (
            "[cost]\nacts = true\nenforce_prices = true\n",
            "has enforce_prices and its earlier name acts: keep enforce_prices",
        ),
        ("[serve]\napi_key = 3\n", "serve.api_key is .not shown.; expected `str"),
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


def test_lists_and_tables_come_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "KDN_SERVE_TENANT_KEYS": "a=k1, b=k2",
        "KDN_STORE_QUOTAS": "a=1 GB,b=7",
        "KDN_STORE_PRIORITIES": '{"a": 2}',
        "KDN_STORE_OBJECT_OPTIONS": "endpoint=http://host:9000/?x=1",
    }
    config = load_config(environ, home=tmp_path)
    assert config.serve.tenant_keys == ("a=k1", "b=k2")
    assert config.store.quotas == {"a": 10**9, "b": 7}
    assert config.store.priorities == {"a": 2}
    assert config.store.object_options == {"endpoint": "http://host:9000/?x=1"}
    same = load_config({"KDN_SERVE_TENANT_KEYS": '["a=k1", "b=k2"]'}, home=tmp_path)
    assert same.serve == config.serve


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("KDN_STORE_QUOTAS", "a", "KDN_STORE_QUOTAS is no table; write NAME=VALUE"),
        ("KDN_STORE_QUOTAS", "{a", "KDN_STORE_QUOTAS is not JSON"),
        ("KDN_STORE_QUOTAS", "a=much", "'much' is no size"),
    ],
)
def test_a_wrong_table_is_refused_in_words(
    tmp_path: Path, variable: str, text: str, message: str
) -> None:
    with pytest.raises(BadConfig, match=message):
        load_config({variable: text}, home=tmp_path)


def test_every_setting_can_be_set_by_the_environment(tmp_path: Path) -> None:
    """The default of each, written as a variable, is the default again."""
    for room in ("engine", "store", "library", "serve", "blend", "cost"):
        default = getattr(Config(home=tmp_path), room)
        for field in default.__struct_fields__:
            value = getattr(default, field)
            if value is None or value in ((), {}):  # lists and tables have tests of their own
                continue
            found = load_config({f"KDN_{room}_{field}".upper(): str(value)}, home=tmp_path)
            assert getattr(found, room) == default, field


def test_a_cluster_that_has_a_service_called_kdn_is_no_mistake(tmp_path: Path) -> None:
    links = {"KDN_SERVICE_HOST": "10.0.0.1", "KDN_PORT": "tcp://10.0.0.1:80", "KDN_PORT_80_TCP": ""}
    assert load_config(links, home=tmp_path).serve.port == 8000


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_the_link_of_a_service_called_kdn_serve_is_no_port(tmp_path: Path, protocol: str) -> None:
    """Kubernetes calls it as our setting is called. All that it writes of a service is passed over."""
    links = {
        "KDN_SERVE_PORT": f"{protocol}://10.0.0.1:8000",
        "KDN_SERVE_SERVICE_HOST": "10.0.0.1",
        "KDN_SERVE_SERVICE_PORT_HTTP": "8000",
        "KDN_SERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    (tmp_path / "kdn.toml").write_text("[serve]\nport = 9000\n")
    assert load_config(links, home=tmp_path).serve.port == 9000
    assert load_config({"KDN_SERVE_PORT": "8001"}, home=tmp_path).serve.port == 8001
    with pytest.raises(BadConfig, match=r"serve.port is 'http://10.0.0.1:8000'; expected"):
        load_config({"KDN_SERVE_PORT": "http://10.0.0.1:8000"}, home=tmp_path)


def test_every_variable_that_we_name_is_one_that_we_take(tmp_path: Path) -> None:
    """Every command runs while a variable is exported that a help text or a document recommends."""
    root = Path(__file__).parents[1]
    kinds = (".py", ".md", ".yaml", ".service", ".toml", ".json", "Dockerfile", "Makefile")
    files = [root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")]
    for folder in ("src", "docs", "deploy", "scripts", "examples"):
        files += [one for one in (root / folder).rglob("*") if one.name.endswith(kinds)]
    named = {
        (variable, str(file.relative_to(root)))
        for file in files
        for variable in re.findall(r"\bKDN_\w*[A-Z0-9]\b", file.read_text(encoding="utf-8"))
    }
    assert {"KDN_HOME", "KDN_ENGINE_KEY", "KDN_STORE_DISK_BYTES"} <= {name for name, _ in named}
    refused = [(name, file) for name, file in sorted(named) if not known(name, tmp_path)]
    assert refused == []


def known(variable: str, home: Path) -> bool:
    try:
        load_config({variable: "1"}, home=home)
    except BadConfig as error:  # of a name that is known, the value may not do
        return "no setting" not in str(error)
    return True


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


def test_earlier_names_of_settings_are_read(tmp_path: Path) -> None:
    """In a file and in the environment; a variable of the present name wins over an earlier one."""
    (tmp_path / "kdn.toml").write_text("[cost]\nacts = true\n[blend]\ndrift = 0.25\n")
    environ = {"KDN_STORE_FAR_NEWS_S": "2.5", "KDN_BLEND_KEY_BIAS": "0.75", "KDN_BLEND_DRIFT": "0"}
    found = load_config(environ, home=tmp_path)
    assert found.cost.enforce_prices
    assert found.store.far_poll_s == 2.5
    assert found.blend.key_bias == 0.75
