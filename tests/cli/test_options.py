"""Options that commands share: models, adapters, files to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.models import OptionInfo
from typer.utils import get_params_from_function

from kdn.api.embedders import open_bert
from kdn.cli import app
from kdn.cli.commands import Commands
from kdn.cli.options import ModelChoice, output_file, output_folder, read_settings
from kdn.cli.steer import needed_recipe
from kdn.config import load_config
from kdn.errors import BadConfig, BadInput, UnknownModel
from kdn.machine.files import try_lock
from kdn.model import resolve
from tests.cli.program import kdn


def test_a_model_is_opened_as_chosen(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    choice = ModelChoice(
        str(tiny_model()), tmp_path, device="cpu", dtype="float32", quantization="int8"
    )
    with choice.open() as opened:
        assert opened.config.home == tmp_path
        assert str(opened.model.decoder.dtype) == "torch.float32"
    settings = load_config({"KDN_ENGINE_POLICY": "priority"}, home=tmp_path)
    with choice.open(settings) as opened:
        assert opened.config is settings


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("nameless", "write NAME=FOLDER"),
        ("=folder", "write NAME=FOLDER"),
        ("name=", "write NAME=FOLDER"),
    ],
)
def test_an_adapter_needs_a_name_and_a_folder(
    tiny_model: Callable[..., Path], tmp_path: Path, given: str, why: str
) -> None:
    with pytest.raises(BadConfig, match=why):
        ModelChoice(str(tiny_model()), tmp_path, adapters=(given,)).open()


def test_packaged_adapters_are_named_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="or one of document-first"):
        ModelChoice("smollm2-135m", tmp_path, adapters=("document",)).open()


def test_the_home_of_the_option_wins(tmp_path: Path) -> None:
    (tmp_path / "kdn.toml").write_text("[serve]\nport = 7\n")
    assert read_settings(tmp_path).serve.port == 7


def test_a_file_to_write_is_looked_at_first(tmp_path: Path) -> None:
    assert output_file(None) is None
    assert output_file(tmp_path / "new.json") == tmp_path / "new.json"
    (tmp_path / "old.json").write_text("")
    assert output_file(tmp_path / "old.json") == tmp_path / "old.json"
    with pytest.raises(BadInput, match="is a folder; name a file in it"):
        output_file(tmp_path)
    with pytest.raises(BadInput, match=r"there is no folder .*missing; make it"):
        output_file(tmp_path / "missing" / "new.json")


LONG = "a" * 300
"""No file system takes it for a name."""


@pytest.mark.parametrize(
    "taken",
    [
        lambda home: needed_recipe(LONG, home),
        lambda home: resolve(LONG, home),
        lambda home: open_bert(LONG, home),
        lambda home: output_file(home / LONG),
        lambda home: output_file(home / LONG / "file"),
        lambda home: output_folder(home / LONG),
    ],
    ids=["recipe", "model", "embedder", "file", "in a folder", "folder"],
)
def test_a_word_that_can_be_no_path_is_refused_as_any_other_that_is_wrong(
    taken: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises((BadInput, UnknownModel), match=LONG[:50]):
        taken(tmp_path)


def test_an_unknown_model_is_told_with_those_there_are(tmp_path: Path) -> None:
    done = kdn(tmp_path, "models", "get", "no-such-model")
    assert done.code == 2
    assert "no-such-model" in done.err
    assert "smollm2-135m" in done.err


def test_a_second_demo_in_a_home_leaves_the_first_its_store(tmp_path: Path) -> None:
    own = tmp_path / "home" / "demo" / "store"
    own.mkdir(parents=True)
    first = try_lock(tmp_path / "home" / "demo.lock")
    assert first is not None
    with first:
        second = kdn(tmp_path / "home", "demo", "-m", "nobody", "--output", tmp_path / "demo.json")
    assert second.code == 1
    assert "another kdn demo runs there; wait for it to end, or give --home" in second.err
    assert own.is_dir()
    later = kdn(tmp_path / "home", "demo", "-m", "nobody", "--output", tmp_path / "demo.json")
    assert later.code == 2
    assert "no model goes by 'nobody'" in later.err, "the lock has gone with the first"
    assert not own.exists()


def test_models_are_told_with_size_and_place(tmp_path: Path) -> None:
    models = kdn(tmp_path, "models", "list", "--json").json["models"]
    assert {"name", "purpose", "size_bytes", "path", "about"} <= set(models[0])
    assert all(model["size_bytes"] > 10**7 for model in models)
    shown = kdn(tmp_path, "models", "list").out.splitlines()
    assert len(shown) >= len(models) + 2


def test_the_earlier_spelling_of_a_quantization_is_taken(tmp_path: Path) -> None:
    """The model is unknown, and is asked for with int8 all the same: the option was read."""
    for given in (["--int8"], ["--quantization", "int8"]):
        done = kdn(tmp_path, "ask", "-m", "nobody", *given, "Where?")
        assert done.code == 2
        assert "nobody" in done.err
        assert "No such option" not in done.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "extract", "--stress", "red"), "which steering says already"),
        (("--auto", "--rerank", "5"), "which --rerank says already"),
        (("--deadline-ms", "9", "--steer", "look"), "which steering says already"),
        (("--quality", "best", "--no-auto"), "which --no-auto says already"),
        (("--fast", "--quality", "cheap"), "fast, balanced, best"),
        (("--max-parts", "3", "--quality", "cheap"), "fast, balanced, best"),
    ],
)
def test_no_option_of_ask_is_passed_over(
    options: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = kdn(tmp_path, "ask", "Why?", *options)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_a_home_may_name_a_user(tmp_path: Path) -> None:
    """Shells leave `--home=~/x` as it is; the store went into a folder called ~."""
    home = kdn(tmp_path, "store", "stat", "--home=~no-such-user/x")
    assert (home.code, "no such user here" in home.err) == (2, True), home.err
    assert read_settings(Path("~/x")).home == Path.home() / "x"


def _float_options(program: typer.Typer) -> Iterator[tuple[str, OptionInfo]]:
    """Where each option stands that takes a number with a point, and what is said of it."""
    for group in program.registered_groups:
        assert group.typer_instance is not None
        yield from _float_options(group.typer_instance)
    for command in program.registered_commands:
        assert command.callback is not None
        for name, one in get_params_from_function(command.callback).items():
            if "float" in str(one.annotation) and isinstance(one.default, OptionInfo):
                yield f"{command.callback.__name__} {name}", one.default


def test_no_number_may_be_endless(tmp_path: Path) -> None:
    """`inf` is above every upper bound, and `nan` is not above a lower one: so each number has both."""
    found = dict(_float_options(app))
    assert {"advise reuses_per_hour", "simulate seconds", "label threshold"} <= found.keys()
    endless = [name for name, one in found.items() if one.min is None or one.max is None]
    assert endless == []
    for number in ("inf", "-inf", "nan"):
        done = kdn(tmp_path, "cost", "advise", f"--reuses-per-hour={number}")
        assert (done.code, done.out) == (2, "")
        assert "--reuses-per-hour" in done.err


def _stopped(_: str | None) -> None:
    raise KeyboardInterrupt


def test_a_command_that_is_stopped_while_its_words_are_read_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = typer.Typer(cls=Commands)

    @program.callback()
    def begin(word: Annotated[str | None, typer.Option(callback=_stopped)] = None) -> None: ...

    @program.command()
    def work() -> None: ...

    with pytest.raises(SystemExit) as ended:
        program(["work"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nkdn: stopped\n"
