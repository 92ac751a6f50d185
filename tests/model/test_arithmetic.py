"""Whether a row's bits hold is tried on the model and the processor at hand, before KV is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.model import load_model
from kdn.model.arithmetic import holds_bits
from kdn.model.attention import (
    Attention,
    TorchAttention,
    attend_blocks,
)
from kdn.model.kernels import KernelAttention, Kernels
from tests.engine.runs import load_tiny
from tests.engine.test_company import Careless
from tests.processor import skipped_without_bf16

TinyModel = Callable[..., Path]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_large_layer_on_plain_torch_holds_its_bits_or_is_not_stored(
    quantization: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """15 M weights in a layer: those kept in 8 bits take another kernel from 17 rows on."""
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    folder = tiny_model("llama", **wide)
    with skipped_without_bf16():
        model = load_model(
            folder,
            cache_dir=tmp_path,
            dtype="bfloat16",
            device="cpu",
            quantization=quantization,
        )
    decoder = model.decoder
    hidden = torch.randn(40, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        alone, among = decoder.layers[0].qkv(hidden[:5]), decoder.layers[0].qkv(hidden)
    are_equal = all(torch.equal(a, b[:5]) for a, b in zip(alone, among, strict=True))
    assert are_equal or not holds_bits(decoder, TorchAttention())


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (14, 2, 64), (2, 1, 128)])
def test_rows_behind_4096_columns_get_the_same_bits_however_they_are_cut(
    heads: int, kv_heads: int, dim: int, num_threads: int
) -> None:
    """One sum over so many columns of bf16 came out otherwise for 8 rows than for 128."""
    random = torch.Generator().manual_seed(heads)
    shapes = ((128, heads, dim), (kv_heads, 4096, dim), (kv_heads, dim, 4096))
    q, k, v = (torch.randn(shape, generator=random).bfloat16() for shape in shapes)
    at = torch.arange(4096 - 128, 4096)
    torch.set_num_threads(1)
    with skipped_without_bf16():
        whole = attend_blocks(2 * q, k, v, at, None)
    torch.set_num_threads(num_threads)
    for start, stop in (
        (0, 128),
        (127, 128),
        (60, 62),
        (10, 15),
        (5, 13),
        (0, 16),
        (64, 81),
        (1, 65),
    ):
        part = attend_blocks(2 * q[start:stop], k, v, at[start:stop], None)
        assert torch.equal(part, whole[start:stop]), (start, stop)


@pytest.mark.parametrize("window", [130, 700])
def test_rows_in_a_window_get_the_same_bits_wherever_their_block_is_cut(window: int) -> None:
    """A row reads from where the window of its block begins, not from where that of its pass does."""
    random = torch.Generator().manual_seed(0)
    shapes = ((128, 6, 64), (3, 1024, 64), (3, 64, 1024))
    q, k, v = (torch.randn(shape, generator=random) for shape in shapes)
    at = torch.arange(1024 - 128, 1024)
    cuts = ((127, 128), (100, 105), (3, 128), (64, 96))
    seen = attend_blocks(q, k, v, at, None)
    if any(not torch.equal(attend_blocks(q[a:b], k, v, at[a:b], None), seen[a:b]) for a, b in cuts):
        pytest.skip("this processor's sums depend on the rows beside, with no window either")
    whole = attend_blocks(q, k, v, at, window)
    for start, stop in cuts:
        part = attend_blocks(q[start:stop], k, v, at[start:stop], window)
        assert torch.equal(part, whole[start:stop]), (start, stop)


class CarelessOfMany(Careless):
    behind = 2048


def test_attention_is_tried_over_many_columns_too(tiny_model: TinyModel, tmp_path: Path) -> None:
    decoder = load_tiny(tiny_model("llama"), tmp_path).decoder
    torch.set_num_threads(3)
    if not holds_bits(decoder, TorchAttention()):
        pytest.skip("this processor's sums depend on the rows beside")
    assert not holds_bits(decoder, CarelessOfMany())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_compiled_kernels_hold_their_bits(
    dtype: str, tiny_model: TinyModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kernels: Kernels = request.getfixturevalue("kernels" if dtype == "bfloat16" else "floats")
    attention: Attention = KernelAttention(kernels)
    folder = tiny_model("llama", hidden_size=128, num_attention_heads=4, head_dim=64)
    decoder = load_tiny(folder, tmp_path, dtype).decoder
    assert holds_bits(decoder, attention)
