"""The compiled coder against its dull twin: equal words, equal symbols, equal bits of values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.core import KvShape
from kdn.errors import CorruptBlock
from kdn.machine.compiler import NoCompiler
from kdn.store.codecs import Coder, NativeCoder, NumpyCoder, RunForm
from kdn.store.codecs.coder import Bytes, Restoring, Symbols
from kdn.store.codecs.shapes import ESCAPE, NUM_SHAPES, shapes


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeCoder:
    try:
        return NativeCoder(tmp_path_factory.mktemp("coder"))
    except NoCompiler as why:
        pytest.skip(str(why))


def drawn(seed: int, rows: int, width: int) -> tuple[Symbols, Bytes]:
    """Symbols [rows, width] and a shape for each column that has them all."""
    random = np.random.default_rng(seed)
    shape = random.integers(0, NUM_SHAPES, width).astype(np.uint8)
    reach = shapes().reach[shape]
    numbers = np.clip(np.rint(random.normal(0, reach / 3, (rows, width))), -reach, reach)
    escaped = random.random((rows, width)) < 0.01
    return np.where(escaped, ESCAPE, numbers).astype(np.int8), shape


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 2, 6, 32, 64, 70, 384]))
def test_the_twin_writes_and_reads_its_own_words(seed: int, rows: int, width: int) -> None:
    symbols, shape = drawn(seed, rows, width)
    coder = NumpyCoder()
    words = coder.encode(symbols, shape)
    assert (coder.decode(words, shape, rows) == symbols).all()


@pytest.mark.parametrize("width", [2, 30, 32, 64, 256, 384])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_both_write_the_same_words(native: NativeCoder, rows: int, width: int) -> None:
    symbols, shape = drawn(rows * width, rows, width)
    words = NumpyCoder().encode(symbols, shape)
    assert (native.encode(symbols, shape) == words).all()
    assert (native.decode(words, shape, rows) == symbols).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_restore_the_same_bits(native: NativeCoder, dtype: str) -> None:
    form = RunForm(KvShape(1, 2, 32, dtype), 0, 64)
    symbols, _ = drawn(1, 64, 128)
    random = np.random.default_rng(2)
    escapes = random.integers(-(2**31), 2**31, (symbols == ESCAPE).sum()).astype(np.int32)
    by = Restoring(
        random.integers(0, 4, 128).astype(np.uint8),
        np.repeat(np.array([0.031, 0.0027], dtype=np.float32), 64),
        random.normal(0, 3, 128).astype(np.float32),
    )
    ours, twins = (coder.restore(symbols, escapes, by, form) for coder in (native, NumpyCoder()))
    assert bytes(ours) == bytes(twins)
    for coder in (native, NumpyCoder()):
        with pytest.raises(CorruptBlock):
            coder.restore(symbols, escapes[1:], by, form)


def test_words_that_end_early_late_or_elsewhere_are_refused(native: NativeCoder) -> None:
    symbols, shape = drawn(3, 16, 64)
    words = native.encode(symbols, shape).copy()
    changed = words.copy()
    changed[100] ^= 1
    coders: list[Coder] = [native, NumpyCoder()]
    for coder in coders:
        for wrong in (words[:-1], words[:40], np.append(words, words[-1:]), changed):
            with pytest.raises(CorruptBlock):
                coder.decode(wrong, shape, 16)


def test_a_machine_without_a_compiler_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompiler, match="no C compiler"):
        NativeCoder(tmp_path)
