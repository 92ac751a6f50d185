"""kdn bench as its users type it: what it refuses before any work, and what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdn import bench
from kdn.bench import BENCHES
from kdn.bench.store.policies import made_up_chats
from kdn.cli.bench import USED_BY
from tests.cli.program import kdn
from tests.store.traces.written import write_trace

SOURCE = Path(bench.__file__).parents[2]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(tmp_path / "t.jsonl", made_up_chats(seed=4, chats=12))
    return tmp_path / "t.jsonl"


def test_an_unknown_benchmark_is_told_with_those_there_are(tmp_path: Path) -> None:
    done = kdn(tmp_path, "bench", "moon")
    assert (done.code, done.out) == (2, "")
    assert "no benchmark 'moon'; there are " in done.err
    assert all(name in done.err for name in BENCHES)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("policies --only quality", "policies has no use for --only; it is for blend, l4s"),
        ("store --arms ours", "store has no use for --arms; it is for blend"),
        ("engine --ratio 0.2", "engine has no use for --ratio; it is for blend"),
        ("mil --rows rows.json", "mil has no use for --rows"),
        ("engine --data .", "engine has no use for --data; it is for blend"),
        ("rtc --seed 7", "rtc has no use for --seed; it is for blend"),
        ("blend --only moon", "blend has the parts quality, timing and layers, not 'moon'"),
        ("blend --arms moon", "no way of blending 'moon' to compare; there are naive"),
        ("blend --ratio 1.5", "less than or equal to 1"),
        ("ndcg --only moon", "ndcg has the parts ranking and answers"),
        ("rtc --only moon", "rtc has no part 'moon'; there are codec"),
        ("l4s --only moon", "l4s has no part 'moon'; there are prediction"),
        ("policies --threads 0", "greater than or equal to 1"),
        ("policies --data nowhere", "does not exist"),
    ],
)
def test_what_a_benchmark_cannot_do_is_refused_before_any_work(
    tmp_path: Path, arguments: str, why: str
) -> None:
    """The model that is named does not exist, and no message says so."""
    done = kdn(tmp_path, "bench", *arguments.split(), "--model", "no-such-model")
    assert (done.code, done.out) == (2, "")
    assert why in " ".join(done.err.split())


def _read_for(name: str) -> dict[str, str]:
    """The module of a benchmark, and all that it imports of benchmarks: name and text."""
    found, wanted = dict[str, str](), [BENCHES[name]]
    while wanted:
        if (module := wanted.pop()) not in found:
            text = (SOURCE / f"{module.replace('.', '/')}.py").read_text("utf-8")
            found[module] = text
            wanted += re.findall(r"from (kdn\.bench\.\w+\.\w+) import", text)
    return found


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_options_are_refused_where_nothing_looks_at_them(name: str) -> None:
    read = _read_for(name)
    for field, users in USED_BY.items():
        looked = f"options.{field}"
        if looked in read[BENCHES[name]]:
            assert name in users, field
        if name in users:
            assert any(looked in text for text in read.values()), field


@pytest.mark.parametrize("option", ["--json", "--rows", "--report"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, trace: Path, option: str
) -> None:
    place = trace if option == "--report" else tmp_path
    done = kdn(tmp_path, "bench", "policies", "--data", trace, option, place)
    assert (done.code, done.out) == (2, "")
    assert f"'{option}'" in done.err
    assert "blocks:" not in done.err, "no policy was run"


def test_one_json_object_on_stdout_or_in_a_file(tmp_path: Path, trace: Path) -> None:
    asked = ("bench", "policies", "--data", trace, "--quick", "--seed", "3")
    shape = kdn(tmp_path, *asked, "--json", "-").json
    assert {"bench", "commit", "config", "machine", "model", "notes", "rows", "summary"} <= set(
        shape
    )
    assert (shape["config"]["seed"], shape["config"]["quick"]) == (3, True)
    file = tmp_path / "new" / "found.json"
    shown = kdn(tmp_path, *asked, "--json", file)
    assert shown.out.startswith("policies: none, ")
    assert json.loads(file.read_text())["summary"] == shape["summary"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"words"])
def test_a_file_that_holds_no_policies_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "policies.npz"
    file.write_bytes(content)
    done = kdn(tmp_path, "net", "rtc", "eval", "--policies", file)
    assert (done.code, done.out) == (2, "")
    assert f"cannot read {file} as policies: `kdn net rtc train` did not write it" in done.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("net l4s eval --policies moon", "no policy 'moon'; there are all-L"),
        ("net l4s simulate --share 3", "no classic share '3'; there are 1/16, 10%"),
        ("net rtc eval --data {}", "holds no cellular/*.gz or puffer/*.gz"),
        ("store simulate --trace {}/t.jsonl --policy moon", "'moon'"),
        ("cost trace --trace {}/t.jsonl --capacity 5parsecs", "5parsecs"),
        ("serve --port 99999", "port 99999 is not in 0..65535"),
        ("rerank why --model no-such-model", "there is nothing to rank"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    tmp_path: Path, trace: Path, arguments: str, why: str
) -> None:
    done = kdn(tmp_path / "home", *arguments.format(trace.parent).split())
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("kdn: ")]
    assert why in line
