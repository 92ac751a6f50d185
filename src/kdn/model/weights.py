"""Tensors by name out of safetensors files, one or many, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdn.errors import KdnError, WeightsError
from kdn.machine.text import read_bounded

__all__ = ["Tensors", "open_folder", "open_tensors", "read_json", "weight_files", "weights_gate"]

_MODEL_HOLDS = "a model folder holds config.json, tokenizer.json and safetensors weights"


def read_json(path: Path, holds: str = _MODEL_HOLDS, what: str = "model") -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsError, saying what such a folder holds, when it is absent
    or torn."""
    try:
        found = json.loads(read_bounded(path).decode())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path.parent} has no {path.name}; {holds}: name another folder, or fetch the {what} again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); {holds}: fetch the {what} again"
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds no JSON object; fetch the {what} again")
    return found


@contextmanager
def weights_gate(where: Path) -> Iterator[None]:
    """Whatever else a stranger's files raise inside becomes one WeightsError that names them."""
    try:
        yield
    except KdnError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # libraries in Rust raise panics that are no Exception
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise WeightsError(
            f"{where} cannot be loaded ({why}); it is damaged: fetch it again"
        ) from error


class Tensors:
    """Named tensors of one or more open files. Tensors read before closing stay valid."""

    def __init__(self, handles: Mapping[str, Any], where: Path) -> None:
        self._handles = handles
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def keys(self) -> list[str]:
        return sorted(self._handles)

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, on the CPU in its stored dtype. Raises WeightsError if absent or misfit."""
        if name not in self._handles:
            raise WeightsError(f"{self._where} lacks the tensor {name}; fetch the model again")
        try:
            tensor = self._read(name)
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"{self._where}: the tensor {name} cannot be read ({error}); fetch the model again"
            ) from error
        if shape is not None and tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{self._where}: {name} has shape {tuple(tensor.shape)} where the config asks for "
                f"{shape}; weights and config.json belong to different models"
            )
        return tensor

    def without_values(self) -> Tensors:
        """The same names and shapes, of tensors that take no memory and are not read."""
        return _TensorShapes(self._handles, self._where)

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor


class _TensorShapes(Tensors):
    def _read(self, name: str) -> Tensor:
        return torch.empty(self._handles[name].get_slice(name).get_shape(), device="meta")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises WeightsError when there are none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            foreign = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise WeightsError(f"{index} is damaged ({error}); fetch the model again") from error
        if foreign:
            raise WeightsError(
                f"{index} names {foreign[0]!r}, outside of its folder; fetch it again"
            )
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {', '.join(missing)}; a model folder holds config.json, "
            "tokenizer.json and safetensors weights (other weight formats are not read)"
        )
    return files


@contextmanager
def open_folder(folder: Path) -> Iterator[Tensors]:
    """All tensors of a model folder, sharded or not."""
    with _open(weight_files(folder), folder) as tensors:
        yield tensors


@contextmanager
def open_tensors(file: Path) -> Iterator[Tensors]:
    """All tensors of one safetensors file."""
    with _open([file], file) as tensors:
        yield tensors


@contextmanager
def _open(files: list[Path], where: Path) -> Iterator[Tensors]:
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        for file in files:
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{file} cannot be read as safetensors ({error}); fetch the model again"
                ) from error
            handles.update(dict.fromkeys(handle.keys(), handle))
        yield Tensors(handles, where)
