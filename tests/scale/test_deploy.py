"""What is deployed is what the programs take: images, compose file, Helm chart and unit are parsed."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from kdn.cli import app
from kdn.config import load_config
from kdn.scale.settings import read_settings
from kdn.store import open_store
from tests.scale.served import routed
from tests.store.remotes import node_server

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "kdn"
_TAG = re.compile(
    r"[ \t]*\{\{- (if|range) ([^}]+) \}\}\n|[ \t]*\{\{- (end) \}\}\n|\{\{ ([^}]+) \}\}"
)


def rendered(text: str, values: Mapping[str, Any]) -> str:
    """A template of the chart as Helm writes it: places, `if` and `range`, and no more of Go's language."""
    parts, at = list[Any](), 0
    for found in _TAG.finditer(text):
        parts += [text[at : found.start()], found]
        at = found.end()
    lines, rest = _fill([*parts, text[at:]], values, values)
    assert not rest
    return lines


def _fill(parts: list[Any], values: Mapping[str, Any], dot: Any) -> tuple[str, list[Any]]:
    """Up to the end of a block, and what follows it."""
    said = ""
    while parts:
        part = parts.pop(0)
        if isinstance(part, str):
            said += part
        elif part[4]:
            said += _value(part[4], values, dot)
        elif part[3]:
            return said, parts
        else:
            items = _find(part[2], values, dot)
            turns = items if part[1] == "range" else [dot] * bool(items)
            inner = [_fill(list(parts), values, item) for item in turns]
            said += "".join(text for text, _ in inner)
            parts = inner[0][1] if inner else _fill(list(parts), values, dot)[1]
    return said, parts


def _value(words: str, values: Mapping[str, Any], dot: Any) -> str:
    name, *functions = words.split(" | ")
    if name.startswith("div "):
        _, first, second = name.split()
        return str(_find(first, values, dot) // int(second))
    found = _find(name, values, dot)
    for function in functions:
        assert function in ("quote", "toJson", "int64")
        found = int(found) if function == "int64" else json.dumps(found)
    return str(found)


def _find(name: str, values: Mapping[str, Any], dot: Any) -> Any:
    found = dot if name == "." else values
    for word in name.removeprefix("$").split(".")[1:] if name != "." else ():
        found = found[word]
    return found


def manifests(**changes: Any) -> Iterator[dict[str, Any]]:
    given = yaml.safe_load((CHART / "values.yaml").read_text()) | changes
    values = {"Values": given, "Release": {"Name": "shop"}}
    for template in sorted((CHART / "templates").glob("*.yaml")):
        yield from yaml.safe_load_all(rendered(template.read_text(), values))


def refuse_unknown(command: Sequence[str]) -> None:
    """Assert that `kdn` has this command, and that every option of it is one."""
    name, *arguments = command
    known: Any = get_command(app)
    options = {option for one in known.commands[name].params for option in one.opts}
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in options, argument


def connector_of(text: str) -> Mapping[str, Any]:
    """The transfer configuration, which our settings must take."""
    found: dict[str, Any] = json.loads(text)
    assert (found["kv_connector"], found["kv_load_failure_policy"]) == ("KdnConnector", "recompute")
    read_settings(found["kv_connector_extra_config"])
    return found


def test_the_image_runs_commands_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    refuse_unknown(json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[0]))
    assert len(re.findall(r"^HEALTHCHECK", text, re.MULTILINE)) == 2
    root = DEPLOY.parent
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (root / source).exists(), source
    extras = re.search(r"kdn\[([a-z,0-9]+)\]", text)
    assert extras is not None
    told = (root / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = ", told, re.MULTILINE) for extra in extras[1].split(","))


def test_the_compose_file_starts_what_it_depends_on() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert list(services) == ["redis", "node", "vllm", "router"]
    for name in ("node", "router"):
        refuse_unknown(services[name]["command"])
    text = services["vllm"]["command"][-1].replace("${STORE_KEY:?a key for the store}", "k")
    told = connector_of(text)["kv_connector_extra_config"]
    assert told["peer_url"].endswith(f"node:{services['node']['command'][4]}")
    for service in services.values():
        for other in service.get("depends_on", {}):
            assert other in services


def test_the_compose_file_is_one_that_docker_takes() -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    keys = {
        "STORE_KEY": "a",
        "API_KEY": "b",
        "MODEL": "m",
        "PATH": "/usr/bin:/usr/local/bin",
    }
    done = subprocess.run(command, env=keys, capture_output=True, text=True, check=False)
    if "unknown" in done.stderr or "is not a docker command" in done.stderr:
        pytest.skip("docker compose is not installed")
    assert done.returncode == 0, done.stderr


def image_environment() -> dict[str, str]:
    """What the image `kdn` sets."""
    lines = re.findall(r"^ENV (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """What each deployed program of ours finds in its environment, and which it is."""
    image = image_environment()
    yield "image", image
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        yield f"compose {name}", image | service.get("environment", {})
    for pod in pods():
        (container,) = pod["containers"]
        given = {one["name"]: one.get("value", "from a Secret") for one in container.get("env", ())}
        yield f"chart {container['name']}", image | given
    for path in DEPLOY.glob("*.service"):
        lines = re.findall(r"^Environment=(.+)$", path.read_text(), re.MULTILINE)
        yield path.name, dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def pods(**changes: Any) -> list[dict[str, Any]]:
    kept = (one for one in manifests(**changes) if one["kind"] != "Service")
    return [one["spec"]["template"]["spec"] for one in kept]


def test_what_is_set_for_the_programs_is_what_they_take(tmp_path: Path) -> None:
    """`kdn` refuses a variable of ours that it does not know, and ends."""
    found = dict(environments())
    assert len(found) == 10
    for environ in found.values():
        load_config(environ, home=tmp_path)


def test_the_image_asks_the_port_of_what_it_runs() -> None:
    """Its own command, the node; compose names the router's, and docs/scale.md that of `kdn serve`."""
    found = {name: environ.get("HEALTH_URL") for name, environ in environments()}
    assert "os.environ['HEALTH_URL']" in (DEPLOY / "Dockerfile").read_text()
    assert found["image"] == found["compose node"] == "http://127.0.0.1:8100/health"
    assert found["compose router"] == "http://127.0.0.1:8200/health"
    told = (DEPLOY.parent / "docs" / "scale.md").read_text()
    assert "-e HEALTH_URL=http://127.0.0.1:8000/health" in told


def test_a_first_download_of_a_model_is_waited_for() -> None:
    """Half an hour, in which a vLLM without an answer is starting: compose's router waits for it."""
    text = (DEPLOY / "Dockerfile").read_text()
    periods = [int(one) for one in re.findall(r"--start-period=(\d+)s", text)]
    assert periods == [1800, 30]
    assert (
        "healthcheck"
        not in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["vllm"]
    )
    (probe,) = (
        pod["containers"][0]["startupProbe"]
        for pod in pods()
        if "startupProbe" in pod["containers"][0]
    )
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800


def test_the_node_fills_its_volume_and_no_more() -> None:
    """Without a number it would take a tenth of it, and 20 GB at most."""
    given = yaml.safe_load((CHART / "values.yaml").read_text())["node"]
    for node in (given, given | {"storageGi": 50}, given | {"storageGi": 2048}):
        (pod,) = (one for one in pods(node=node) if one["containers"][0]["name"] == "node")
        told = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        asked = load_config({"KDN_STORE_DISK_BYTES": told["KDN_STORE_DISK_BYTES"]}).store.disk_bytes
        assert asked is not None
        assert asked / (node["storageGi"] * 2**30) == pytest.approx(0.931, abs=0.001)
        assert claimed(node) == f"{node['storageGi']}Gi"


def claimed(node: Mapping[str, Any]) -> str:
    """The size of the volume that the chart's node claims."""
    (one,) = (
        one
        for one in manifests(node=node)
        if one["metadata"]["name"] == "shop-node" and one["kind"] == "StatefulSet"
    )
    found: str = one["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    return found


def test_no_pod_is_told_of_the_services_around_it() -> None:
    """A service called kdn-serve or vllm would set a variable that is a setting of ours or vLLM's."""
    assert [pod["enableServiceLinks"] for pod in pods()] == [False] * 3


def test_every_pod_of_the_chart_is_asked_how_it_is() -> None:
    found = list(manifests())
    kinds = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert kinds == [
        ("Service", "shop-node"),
        ("StatefulSet", "shop-node"),
        ("Service", "shop-router"),
        ("Deployment", "shop-router"),
        ("Service", "shop-vllm"),
        ("StatefulSet", "shop-vllm"),
    ]
    for service, workload in zip(found[::2], found[1::2], strict=True):
        pod = workload["spec"]["template"]
        assert service["spec"]["selector"] == pod["metadata"]["labels"]
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert service["spec"]["ports"][0]["port"] == ports["http"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        assert container["livenessProbe"]["periodSeconds"] == 10
        assert container["resources"]["requests"]


def test_helm_takes_the_chart_and_writes_what_is_read_here() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed")
    for command in ([helm, "lint", str(CHART)], [helm, "template", "shop", str(CHART)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    written = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)
    }
    assert written == {(one["kind"], one["metadata"]["name"]): one for one in manifests()}


def test_probes_ask_for_what_the_programs_answer(tmp_path: Path) -> None:
    """A node is ready by itself, a router with a server behind it; vLLM's /health is asked by its tests."""
    with open_store(tmp_path) as store, node_server(store, admin_key="k" * 32) as node:
        assert httpx.get(f"{node}/health", timeout=60).status_code == 200, "probes send no key"
        with routed(node, key="c" * 32) as client:
            assert httpx.get(client.base_url.join("/health"), timeout=60).status_code == 200
    with routed("http://127.0.0.1:9") as client:
        assert any(client.get("/health").status_code == 503 for _ in range(1000))


def test_the_chart_s_programs_take_their_arguments() -> None:
    found = {pod["containers"][0]["name"]: pod["containers"][0] for pod in pods()}
    refuse_unknown(found["node"]["args"])
    refuse_unknown(found["router"]["args"])
    servers = [one for one in found["router"]["args"] if one.startswith("--server=")]
    assert servers == [f"--server=http://shop-vllm-{n}.shop-vllm:8000" for n in (0, 1)]
    told = connector_of(found["vllm"]["args"][-1].partition("=")[2])
    assert told["kv_connector_extra_config"]["peer_url"] == "http://shop-node:8100"


def test_a_storage_class_is_left_to_the_cluster_unless_named() -> None:
    given = yaml.safe_load((CHART / "values.yaml").read_text())["node"]

    def claim(node: Mapping[str, Any]) -> dict[str, Any]:
        (workload,) = (
            one
            for one in manifests(node=node)
            if (one["kind"], one["metadata"]["name"]) == ("StatefulSet", "shop-node")
        )
        found: dict[str, Any] = workload["spec"]["volumeClaimTemplates"][0]["spec"]
        return found

    assert "storageClassName" not in claim(given)
    assert claim(given | {"storageClass": "fast"})["storageClassName"] == "fast"
    assert claim(given)["resources"]["requests"]["storage"] == "200Gi"


@pytest.mark.parametrize("name", ["node", "serve"])
def test_the_unit_starts_a_command_that_exists(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DEPLOY / f"kdn-{name}.service").read_text())
    program, *command = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "kdn"
    assert command[0] == name
    refuse_unknown(command)
    assert unit["Service"]["Restart"] == "on-failure"
