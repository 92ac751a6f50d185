"""The command line without a model: help, errors, exit codes."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.cli.commands import explained
from tests.cli.program import environment, finish, kdn, start

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    def children_s() -> float:
        """Processor time, so that a busy machine does not fail it."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    spent_s = []
    for _ in range(3):  # the first one may compile what it imports
        before_s = children_s()
        done = finish(start(tmp_path, "--help"))
        spent_s.append(children_s() - before_s)
    assert done.code == 0
    assert min(spent_s) < 1
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


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["store", "--help"]])
def test_a_full_output_is_said(tmp_path: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kdn", *words],
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("kdn: No space left on device")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("models list >&-", 0, ""),
        ("models list --json 2>&-", 0, ""),
        ("ask - <&-", 2, "kdn: the question is empty; ask something\n"),
    ],
)
def test_a_closed_stream_is_empty_or_takes_what_nobody_reads(
    tmp_path: Path, words: str, code: int, said: str
) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m kdn {words}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_wrong_use_is_exit_code_2_and_says_what(tmp_path: Path) -> None:
    done = kdn(tmp_path, "nonsense")
    assert (done.code, done.out) == (2, "")
    assert "nonsense" in done.err
    assert kdn(tmp_path, "ask").code == 2
    assert kdn(tmp_path, "ingest", tmp_path / "missing").code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("router", "--server", "http://127.0.0.1:port"),
        ("scale", "vllm-args", "--peer-url", "http://127.0.0.1:port"),
        ("scale", "vllm-args", "--peer-url", "http://[half"),
    ],
)
def test_what_is_no_address_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = kdn(tmp_path, *arguments)
    assert refused.code == 2
    assert arguments[-1] in refused.err
    assert "no address" in refused.err


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
    (tmp_path / "blend-guard.json").write_text(
        '{"abc": {"boxes": {"asked": 7, "samples": 3, "agreed": 2, "recent_kl": [], "ratio": 0.25}}}'
    )
    shown = kdn(tmp_path, "store", "stat")
    assert (shown.code, "boxes" in shown.out) == (0, True), shown.err
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


def arguments_of(command: str, text: Path, model: Path) -> list[str | Path]:
    """The command with what it cannot do without."""
    arguments: list[str | Path] = list(command.split())
    if command in ("ingest", "store put"):
        arguments.append(text)
    if command == "ask":
        arguments.append("why?")
    if command in ("ingest", "ask", "store put", "cost fit"):
        arguments += ["--model", model]
    return arguments


@pytest.mark.parametrize(
    "command",
    ["ingest", "ask", "store put", "store stat", "store clear --yes", "cost fit"],
)
def test_a_home_in_which_nothing_can_be_made_is_one_sentence(
    tmp_path: Path, tiny_model: Callable[..., Path], command: str
) -> None:
    home, text = tmp_path / "home", tmp_path / "text.txt"
    text.write_text("words")
    home.mkdir()
    for name in ("store", "library", "models", "cost", "calibration", "kernels"):
        (home / name).write_text("a file where a folder should be")
    done = kdn(home, *arguments_of(command, text, tiny_model()))
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("kdn: ")]
    assert str(home) in line
    assert "Traceback" not in done.err


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize(
    "command",
    [
        *("ingest", "ask", "store put", "store stat", "store clear --yes", "doctor", "cost fit"),
        *("share list", "models list"),
    ],
)
def test_a_home_that_is_no_folder_is_refused_by_commands_that_only_read_too(
    tmp_path: Path, command: str, place: str
) -> None:
    """`--home` is looked at when words are read; here `$KDN_HOME` names it."""
    (tmp_path / "file").write_text("words")
    done = kdn(tmp_path / place, *arguments_of(command, tmp_path / "file", tmp_path))
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path / place} cannot be read: Not a directory; choose another" in done.err


def test_errors_of_the_system_say_what_to_do() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/srv/a")
    assert explained(full) == (
        "/srv/a: No space left on device; free some space, or choose another folder"
    )
    shut = PermissionError(errno.EACCES, "Permission denied", "/srv/a")
    assert "check its rights" in explained(shut)
    assert explained(OSError("odd")) == "odd; check the file and its folder"


def test_ctrl_c_is_130_from_the_first_import_on(tmp_path: Path) -> None:
    assert stopped_at_import(tmp_path, "raise KeyboardInterrupt") == (130, "\nkdn: stopped\n")


def test_what_a_library_makes_of_a_stop_is_a_stop(tmp_path: Path) -> None:
    torn = """
        try: signal.raise_signal(signal.SIGTERM)
        finally: raise RuntimeError('no compiled object yet')
    """
    assert stopped_at_import(tmp_path, torn) == (143, "\nkdn: stopped\n")


def stopped_at_import(tmp_path: Path, how: str) -> tuple[int, str]:
    """How kdn ends whose first import of a command runs `how`."""
    program = (
        "import builtins, signal, kdn.cli\n"
        "real = builtins.__import__\n"
        "def stopped(name, *rest):\n"
        f"    if name == 'kdn.cli.program':\n        {how}\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = stopped\n"
        "kdn.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


_TERMINATED = """
import os, signal, sys
from kdn.bench.common.result import scratch_folder
from kdn.cli import app, main
@app.command()
def measure():
    with scratch_folder() as folder:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:  # `timeout` sends it twice
            os.kill(os.getpid(), signal.SIGTERM)
            print(folder.name)
main()
"""


def test_sigterm_removes_temporary_folders_as_ctrl_c_does(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _TERMINATED, "measure"],
        env=environment(tmp_path) | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("kdn-benchmark-")
    assert done.stderr == "\nkdn: stopped; what was finished before is kept\n"
    assert done.returncode == 143
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("share list", "share"),
        ("store stat", "calibration"),
        ("ask Who? --steer careful", "steer"),
    ],
)
def test_a_folder_of_records_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, command: str, folder: str
) -> None:
    (tmp_path / folder).write_text("a file where a folder should be")
    done = kdn(tmp_path, *command.split())
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path / folder} cannot be read: Not a directory" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_home_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o300)
    done = kdn(home, "share", "list")
    assert done.code == 2
    assert f"{home} cannot be read: Permission denied; choose another" in done.err


def test_no_name_steers_the_terminal(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    name = "\x1b]0;PWNED\x07.txt"
    (tmp_path / name).write_text("words and more words")
    done = kdn(tmp_path / "home", "store", "put", tmp_path / name, "--model", tiny_model())
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert r"\x1b]0;PWNED\x07.txt" in done.out


def test_an_empty_text_is_not_stored(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    """The text before it is, and that is told."""
    full, empty = tmp_path / "full.txt", tmp_path / "empty.txt"
    full.write_text("words and more words")
    empty.write_text(" \n")
    done = kdn(tmp_path, "store", "put", full, empty, "--model", tiny_model(), "--json")
    assert done.code == 2
    assert "empty.txt is empty; there is nothing to store" in done.err
    assert [one["file"] for one in done.json["files"]] == [str(full)]


@pytest.mark.parametrize("command", ["pin", "unpin", "compress none", "copy --to disk"])
def test_all_blocks_are_changed_only_when_that_is_said(tmp_path: Path, command: str) -> None:
    done = kdn(tmp_path, "store", *command.split())
    assert done.code == 2
    assert "which blocks? pick some with --key, --salt or --fingerprint, or say --all" in done.err
    assert kdn(tmp_path, "store", *command.split(), "--all").code == 0


@pytest.mark.parametrize(
    "command",
    [
        "store export {}",
        "cost sweep --plot {}",
        "demo --model no-such-model --output {}",
        "store simulate --trace /dev/null --plot {}",
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, command: str
) -> None:
    """Neither a model nor a trace is looked at: their faults would be told otherwise."""
    for path, why in ((tmp_path / "no" / "x.svg", "there is no folder"), (tmp_path, "is a folder")):
        done = kdn(tmp_path / "home", *command.format(path).split())
        assert done.code == 2
        assert why in done.err
        assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", [("ask", "-"), ("rerank", "q", "-d", "-")])
def test_typed_bytes_that_are_no_text_are_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = kdn(tmp_path, *command, typed=b"caf\xe9")
    assert (done.code, done.out) == (2, "")
    assert "standard input: not UTF-8 text" in done.err
