"""Every codec: the bound on what it loses, and that it never gives what was not asked for."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.core import KvShape
from kdn.errors import CorruptBlock
from kdn.store.codecs import CODECS, Codec, RunForm
from kdn.store.codecs.shapes import shapes
from kdn.store.codecs.values import read_values, write_values

DTYPES = ("bfloat16", "float16", "float32")
LOSSY = [name for name, codec in CODECS.items() if not codec.lossless]
EXACT = [name for name, codec in CODECS.items() if codec.lossless]


def form_of(tokens: int, heads: int = 2, dim: int = 16, dtype: str = "bfloat16") -> RunForm:
    return RunForm(KvShape(4, heads, dim, dtype), 1, tokens)


def noise(form: RunForm, scale: float = 1.0, seed: int = 0) -> memoryview:
    size = (2, form.num_tokens, form.num_channels)
    values = np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)
    return write_values(values, form)


def through(codec: Codec, run: memoryview, form: RunForm) -> memoryview:
    return codec.decode(memoryview(bytes(codec.encode(run, form))), form)


def worst(codec: Codec, run: memoryview, form: RunForm) -> float:
    """The largest error, as a fraction of the largest value."""
    before, after = read_values(run, form), read_values(through(codec, run, form), form)
    return float(np.abs(after - before).max() / np.abs(before).max())


forms = st.builds(
    form_of, st.integers(1, 20), st.integers(1, 3), st.integers(1, 9), st.sampled_from(DTYPES)
)


@settings(max_examples=60)
@given(form=forms, data=st.data(), name=st.sampled_from(EXACT))
def test_what_is_lossless_gives_back_any_bytes(form: RunForm, data: Any, name: str) -> None:
    run = memoryview(data.draw(st.binary(min_size=form.run_bytes, max_size=form.run_bytes)))
    assert bytes(through(CODECS[name], run, form)) == bytes(run)


@settings(max_examples=60)
@given(form=forms, data=st.data(), name=st.sampled_from(LOSSY))
def test_what_is_lossy_takes_any_bytes(form: RunForm, data: Any, name: str) -> None:
    """Infinities, NaN, subnormals: such runs are stored as they are."""
    run = memoryview(data.draw(st.binary(min_size=form.run_bytes, max_size=form.run_bytes)))
    assert through(CODECS[name], run, form).nbytes == form.run_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_as_large_as_the_widths_say(dtype: str) -> None:
    form = form_of(256, dtype=dtype)
    run = noise(form)
    rounding = 2.0**-8 if dtype == "bfloat16" else 2.0**-10
    # Values reach to about 4 deviations.  A step is (max - min) of a group / 255, or / 15.
    assert worst(CODECS["int8"], run, form) < 2 / 255 / 2 + rounding
    assert worst(CODECS["int4"], run, form) < 2 / 15 / 2 + rounding
    assert worst(CODECS["fp8"], run, form) < 2.0**-4 + rounding
    # Layer 1 of 4: steps are the level's times 0.75 + 0.25, times 1.4 for K.
    step = read_values(run, form).std() / np.abs(read_values(run, form)).max()
    for level, fraction in enumerate((0.1, 0.2, 0.3, 0.6), 1):
        bound = 1.4 * fraction * step / 2 + rounding
        assert worst(CODECS[f"entropy-{level}"], run, form) < 1.02 * bound


def test_sizes_are_as_the_widths_say() -> None:
    form = form_of(256, heads=3, dim=64)
    run = noise(form)
    sizes = {name: run.nbytes / codec.encode(run, form).nbytes for name, codec in CODECS.items()}
    assert sizes["none"] == 1
    assert 1.3 < sizes["lossless"] < 1.6
    assert 1.9 < sizes["int8"] < sizes["fp8"] < 2
    assert 3.4 < sizes["int4"] < 4
    assert 3 < sizes["entropy-1"] < sizes["entropy-2"] < sizes["entropy-3"] < sizes["entropy-4"] < 7


def test_e4m3_is_what_its_paper_says() -> None:
    """A channel whose largest value is 448 is stored with scale 1."""
    given_values = [448.0, 0.0, 1.0, 1.0625, 1.1875, -240.0, 2.0**-9, 0.75 * 2.0**-9, 460.0 - 12]
    wanted = [448.0, 0.0, 1.0, 1.0, 1.25, -240.0, 2.0**-9, 2.0**-9, 448.0]
    form = form_of(len(given_values), 1, 1, "float32")
    values = np.array([given_values, given_values], dtype=np.float32)[:, :, None]
    found = read_values(through(CODECS["fp8"], write_values(values, form), form), form)
    assert found[0, :, 0].tolist() == wanted
    # 18 values of 4 bytes became 18 bytes and two scales.
    assert CODECS["fp8"].encode(write_values(values, form), form).nbytes == 16 + 18 + 8


def test_a_key_channel_that_is_large_for_every_token_spoils_no_other() -> None:
    form = form_of(64, 1, 4, "float32")
    values = np.random.default_rng(0).normal(0, 1, (2, 64, 4)).astype(np.float32)
    values[0, :, 2] += 1000
    for name in ("int8", "int4", "entropy-2"):
        found = read_values(through(CODECS[name], write_values(values, form), form), form)
        others = np.abs(found - values)[0, :, [0, 1, 3]]
        assert others.max() < 0.5, name


def test_numbers_out_of_every_reach_come_back_through_escapes() -> None:
    form = form_of(256, 2, 16)
    values = np.random.default_rng(0).normal(0, 1, (2, 256, 32)).astype(np.float32)
    values[1, 100, 7] = 300.0
    found = read_values(through(CODECS["entropy-1"], write_values(values, form), form), form)
    assert abs(found[1, 100, 7] - 300) < 1
    assert np.abs(found - values).max() < 1


@pytest.mark.parametrize("name", [name for name in CODECS if name != "none"])
def test_stored_bytes_that_no_encoder_makes_are_a_corrupt_block(name: str) -> None:
    form = form_of(40)
    stored = bytes(CODECS[name].encode(noise(form), form))
    wrong = [b"", stored[:15], stored[:-1], stored + b"\0", b"\7" + stored[1:], stored[:200]]
    for data in wrong:
        with pytest.raises(CorruptBlock):
            CODECS[name].decode(memoryview(data), form)


LOSSY = [name for name, codec in CODECS.items() if not codec.lossless]


@settings(max_examples=400)
@given(
    st.data(), st.sampled_from(list(CODECS)), st.sampled_from(["bfloat16", "float16", "float32"])
)
def test_damage_gives_a_run_of_the_right_length_or_a_corrupt_block(
    data: Any, name: str, dtype: str
) -> None:
    """No checksum stands before the codec here: it must not crash, hang or allocate by itself.

    What a lossy codec gives is finite: it packs nothing else.
    """
    form = form_of(24, 1, 32, dtype)
    stored = bytearray(CODECS[name].encode(noise(form), form))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        run = CODECS[name].decode(memoryview(bytes(stored)), form)
    except CorruptBlock:
        return
    assert run.nbytes == form.run_bytes
    if name in LOSSY and stored[0] == 1:
        assert np.isfinite(read_values(run, form)).all()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("scale", [b"\x00\x7c", b"\xff\x7f", b"\xff\xff", b"\x00\x80"])
def test_scales_that_are_huge_or_no_number_are_a_corrupt_block_or_finite(
    name: str, dtype: str, scale: bytes
) -> None:
    """Every two bytes of the head in turn become infinity, NaN, -NaN or minus zero."""
    form = form_of(24, 1, 32, dtype)
    stored = bytes(CODECS[name].encode(noise(form), form))
    for at in range(16, min(len(stored) - 2, 300), 2):
        damaged = stored[:at] + scale + stored[at + 2 :]
        with suppress(CorruptBlock):
            assert np.isfinite(
                read_values(CODECS[name].decode(memoryview(damaged), form), form)
            ).all()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("largest", [60_000.0, 65_504.0, 3e38])
def test_the_largest_values_of_a_dtype_come_back(name: str, dtype: str, largest: float) -> None:
    """Stored as they are where rounding could make them infinite."""
    form = form_of(24, 1, 32, dtype)
    values = np.random.default_rng(0).normal(0, 1, (2, 24, 32)).astype(np.float32)
    values[:, ::3, 5] = largest if dtype != "float16" else min(largest, 65_504.0)
    found = read_values(through(CODECS[name], write_values(values, form), form), form)
    assert np.isfinite(found).all()
    assert np.abs(found[:, ::3, 5] / values[:, ::3, 5] - 1).max() < 0.5


def test_a_plane_that_claims_a_gigabyte_is_refused_before_it_is_unpacked() -> None:
    import zstandard

    form = form_of(64)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    stored = b"\1".ljust(16, b"\0") + len(bomb).to_bytes(4, "little") + bomb
    with pytest.raises(CorruptBlock, match="plane"):
        CODECS["lossless"].decode(memoryview(stored), form)


def test_the_shapes_are_those_of_the_format() -> None:
    """Blocks out there were written with these frequencies."""
    tables = shapes()
    assert ((tables.spans & 0xFFFF).sum(axis=1) == 4096).all()
    digest = hashlib.sha256(tables.spans.astype("<u4").tobytes()).hexdigest()
    assert digest[:16] == "69e9391fc735bcbe"
