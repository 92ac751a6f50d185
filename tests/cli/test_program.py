"""The command line without a model: help, errors, exit codes."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path

from tests.cli.program import environment, finish, kdn, start

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = finish(start(tmp_path, "--help"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy machine does not fail it.
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.code == 0
    assert spent < 0.5
    for command in ("ask", "bench", "chat", "demo", "doctor", "ingest", "models", "serve", "store"):
        assert f"\n  {command} " in done.out
    program = (
        "import sys, kdn.cli; print({'torch', 'fastapi', 'lancedb', 'numpy'} & set(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "set()\n"


def test_every_command_explains_itself(tmp_path: Path) -> None:
    for command in ("ask", "serve", "models get", "store clear"):
        done = kdn(tmp_path, *command.split(), "--help")
        assert done.code == 0
        assert "--json" in done.out
        assert "--home" in done.out


def test_the_version_is_told(tmp_path: Path) -> None:
    assert kdn(tmp_path, "--version").out.startswith("kdn ")


def test_wrong_use_is_exit_code_2_and_says_what(tmp_path: Path) -> None:
    done = kdn(tmp_path, "nonsense")
    assert (done.code, done.out) == (2, "")
    assert "nonsense" in done.err
    assert kdn(tmp_path, "ask").code == 2
    assert kdn(tmp_path, "ingest", tmp_path / "missing").code == 2


def test_an_error_is_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    done = kdn(tmp_path, "ask", "why?", "--model", "no-such-model")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("kdn: no model goes by 'no-such-model'")
    assert "Traceback" not in done.err
    (tmp_path / "kdn.toml").write_text("[store]\ndisc_bytes = 1\n")
    done = kdn(tmp_path, "store", "stat")
    assert done.code == 2
    assert "disk_bytes" in done.err


def test_an_empty_store_is_shown_checked_and_cleared(tmp_path: Path) -> None:
    stat = kdn(tmp_path, "store", "stat", "--json").json
    assert stat["blocks"] == 0
    assert list(stat["tiers"]) == ["memory", "disk"]
    assert kdn(tmp_path, "store", "verify", "--json").json["corrupt"] == []
    assert kdn(tmp_path, "store", "clear", "--yes", "--json").json == {"forgotten": 0}
    refused = kdn(tmp_path, "store", "clear", typed="n\n")
    assert refused.code == 1
    assert "forgot" not in refused.out


def test_a_foreign_folder_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "letter.txt").write_text("mine")
    done = kdn(tmp_path, "store", "clear", "--yes")
    assert done.code == 1
    assert done.err.startswith("kdn: ")
    assert (tmp_path / "store" / "letter.txt").read_text() == "mine"


def test_models_are_listed(tmp_path: Path) -> None:
    names = {model["name"] for model in kdn(tmp_path, "models", "list", "--json").json["models"]}
    assert {"smollm2-135m", "minilm-l6"} <= names
    assert "smollm2-135m" in kdn(tmp_path, "models", "list").out


def test_a_taken_port_and_an_open_door_are_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = kdn(tmp_path, "serve", "--port", str(taken.getsockname()[1]))
    assert done.code == 1
    assert "in use" in done.err
    done = kdn(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0")
    assert done.code == 2
    assert "--api-key" in done.err


def test_a_reader_that_leaves_is_no_reason_to_complain(tmp_path: Path) -> None:
    program = start(tmp_path, "models", "list", "--json")
    assert program.stdout is not None
    program.stdout.close()
    program.stdout = None
    done = finish(program)
    assert "Traceback" not in done.err
    assert "BrokenPipe" not in done.err


def test_the_reference_pages_are_current(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "generate_docs.py", "--check"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_public_names_load_on_first_use(tmp_path: Path) -> None:
    program = (
        "import sys, kdn; assert 'torch' not in sys.modules; assert kdn.KdnError; "
        "assert kdn.__version__; assert 'torch' not in sys.modules; "
        "assert set(kdn.__all__) <= set(dir(kdn)); "
        "missing = [n for n in kdn.__all__ if not hasattr(kdn, n)]; print(missing)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
