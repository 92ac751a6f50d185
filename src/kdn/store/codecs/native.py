"""The compiled coder: the same results as numpy's, some hundred times as fast."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.machine.compiler import NoCompiler, compile_shared, source_name
from kdn.machine.files import home_folder
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.coder import LANES, Bytes, Coder, Ints, NumpyCoder, Restoring, Symbols, Words
from kdn.store.codecs.shapes import shapes
from kdn.store.codecs.values import check_finite, write_values

__all__ = ["NativeCoder", "fastest_coder"]

_SOURCE = Path(__file__).with_name("rans.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")


@cache
def fastest_coder() -> Coder:
    """The compiled one where there is a compiler, else numpy's. Compiled once, on first use."""
    try:
        return NativeCoder(home_folder(os.environ) / "kernels")
    except NoCompiler:
        return NumpyCoder()


class NativeCoder(Coder):
    """Calls into `rans.c`, compiled into `folder`. Raises NoCompiler."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"rans-{source_name([_SOURCE])}.so"
        if not path.exists():
            compile_shared([_SOURCE], _FLAGS, path)
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NoCompiler(f"{path.name} cannot be loaded: {error}") from error
        self._library.kdn_rans_encode.restype = ctypes.c_size_t

    def encode(self, symbols: Symbols, shape: Bytes) -> Words:
        rows, width = symbols.shape
        words = np.empty(symbols.size + 2 * LANES, dtype=np.uint16)
        used = self._library.kdn_rans_encode(
            _at(symbols), _at(shapes().spans), _at(shape), *_sizes(rows, width),
            _at(words), *_sizes(words.size),
        )  # fmt: skip
        assert used, "a symbol is not in its shape"
        return words[words.size - used :]

    def decode(self, words: Words, shape: Bytes, rows: int) -> Symbols:
        symbols = np.empty((rows, shape.size), dtype=np.int8)
        failed = self._library.kdn_rans_decode(
            _at(words), *_sizes(words.size), _at(shapes().slots), _at(shape),
            *_sizes(rows, shape.size), _at(symbols),
        )  # fmt: skip
        if failed:
            raise CorruptBlock("the words do not end where encoding began")
        return symbols

    def restore(self, symbols: Symbols, escapes: Ints, by: Restoring, form: RunForm) -> memoryview:
        half_width = form.shape.dtype == "bfloat16"
        shape = (2, form.num_tokens, form.num_channels)
        values = np.empty(shape, dtype=np.uint16 if half_width else np.float32)
        numbers = np.empty(2 * form.num_channels, dtype=np.int32)
        failed = self._library.kdn_restore(
            _at(symbols), _at(escapes), *_sizes(escapes.size),
            _at(by.factor), _at(by.mean), _at(by.step), *_sizes(form.num_tokens, form.num_channels),
            _at(numbers), ctypes.c_int(half_width), _at(values),
        )  # fmt: skip
        if failed:
            raise CorruptBlock("the escapes are not as many as the symbols ask for")
        if not half_width:
            return write_values(values, form)
        check_finite(values)
        return values.reshape(-1).view(np.uint8).data


def _at(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous, "C code walks memory"
    return ctypes.c_void_p(array.ctypes.data)


def _sizes(*numbers: int) -> tuple[ctypes.c_size_t, ...]:
    return tuple(map(ctypes.c_size_t, numbers))
