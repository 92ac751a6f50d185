"""The compiled matrix against plain torch, and its promise: a row's bits depend on that row alone."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdn.model.kernels import KernelLinear, KernelNorm, Kernels
from kdn.model.linear import PlainLinear, quantized
from kdn.model.norm import RmsNorm

SHAPES = [(32, 32), (64, 96), (960, 576), (576, 1536)]


@pytest.fixture(scope="module")
def amx(kernels: Kernels) -> Kernels:
    if not kernels.has_amx:
        pytest.skip("the processor has no AMX")
    return kernels


@pytest.fixture(scope="module", params=["vectors", "tiles"])
def either(request: pytest.FixtureRequest, kernels: Kernels) -> Kernels:
    """The kernels as they are with AMX, and as they are without."""
    if request.param == "vectors":
        return replace(kernels, has_amx=False)
    return cast("Kernels", request.getfixturevalue("amx"))


def matrix(out_size: int, in_size: int) -> Tensor:
    random = torch.Generator().manual_seed(out_size + in_size)
    return torch.randn(out_size, in_size, generator=random).div_(in_size**0.5).bfloat16()


def some_rows(count: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(found: Tensor, expected: Tensor) -> bool:
    """Within bf16 rounding: eight bits of mantissa."""
    return bool(((found.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-2).all())


@pytest.mark.parametrize("count", [1, 5, 16, 17, 32, 33, 600])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_multiplies(
    shape: tuple[int, int], count: int, with_bias: bool, either: Kernels
) -> None:
    weight, x = matrix(*shape), some_rows(count, shape[1])
    bias = some_rows(1, shape[0], seed=2)[0] if with_bias else None
    expected = torch.nn.functional.linear(
        x.float(), weight.float(), None if bias is None else bias.float()
    )
    linear = KernelLinear(either, weight, bias)
    assert near(linear(x), expected)
    assert (linear.wide(x) - expected).abs().max() < 1e-4, "sums are fp32 throughout"
    base = some_rows(count, shape[0], seed=3)
    assert near(linear.onto(base, x), expected + base.float())


def test_a_paired_matrix_gates_and_also_gives_both_halves(either: Kernels) -> None:
    weight, x = matrix(192, 64), some_rows(45, 64)
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    paired = KernelLinear(either, weight, paired=True)
    assert near(paired(x), torch.cat((gate, up), dim=-1))
    assert near(paired.gated(x), torch.nn.functional.silu(gate) * up)
    twin = PlainLinear(weight).gated(x).float()
    assert (twin - torch.nn.functional.silu(gate) * up).abs().max() < 0.05, "rounds three times"


@settings(max_examples=40)
@given(shape=st.sampled_from(SHAPES), count=st.integers(1, 700), data=st.data())
def test_any_cut_of_the_rows_gives_the_same_bits(
    shape: tuple[int, int], count: int, data: st.DataObject, either: Kernels
) -> None:
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    linear = KernelLinear(either, matrix(*shape))
    x = some_rows(count, shape[1])
    assert torch.equal(linear(x[start:stop]), linear(x)[start:stop])


def test_rows_may_be_strided(either: Kernels) -> None:
    wide = some_rows(20, 128)
    linear = KernelLinear(either, matrix(64, 64))
    assert torch.equal(linear(wide[:, 64:]), linear(wide[:, 64:].contiguous()))


def test_odd_sizes_are_left_to_torch() -> None:
    assert KernelLinear.suits(matrix(64, 64), paired=True)
    assert not KernelLinear.suits(matrix(48, 64), paired=False)
    assert not KernelLinear.suits(matrix(96, 64), paired=True), "half a panel of each"
    assert not KernelLinear.suits(matrix(64, 64).float(), paired=False)
    assert KernelLinear.suits(matrix(64, 64), paired=False, int8=True)
    assert not KernelLinear.suits(matrix(64, 96), paired=False, int8=True), (
        "half a tile of integers"
    )


@pytest.mark.parametrize("shape", [(1, 64), (33, 576), (100, 3, 64)])
def test_the_compiled_norm_is_the_plain_one(shape: tuple[int, ...], kernels: Kernels) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    weight = some_rows(1, shape[-1], seed=5)[0]
    plain, compiled = RmsNorm(weight, 1e-5)(x), KernelNorm(kernels, weight, 1e-5)(x)
    assert compiled.shape == x.shape
    assert (plain.float() - compiled.float()).abs().max() <= 2**-7 * plain.float().abs().max()
    wide = torch.cat((x, x), dim=-1)[..., : shape[-1]]
    assert torch.equal(KernelNorm(kernels, weight, 1e-5)(wide), compiled), "rows may be strided"


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_the_largest_integers_fit(sign: int, either: Kernels) -> None:
    """1,088 ones times as many ones: 127 and 32,767 times 1,088 would not fit 32 bits."""
    linear = KernelLinear(either, sign * torch.ones(32, 1088).bfloat16(), int8=True)
    found = linear.wide(torch.ones(1, 1088).bfloat16())
    assert (found - sign * 1088).abs().max() < 0.5


@pytest.mark.parametrize("count", [1, 16, 33, 600])
@pytest.mark.parametrize("paired", [False, True])
def test_eight_bits_are_the_integers_times_their_scale(
    count: int, paired: bool, either: Kernels
) -> None:
    weight, x = matrix(192, 128), some_rows(count, 128)
    whole, scale = quantized(weight)
    expected = x.float() @ (whole.float() * scale.float()[:, None]).T
    linear = KernelLinear(either, weight, paired=paired, int8=True)
    assert (linear.wide(x) - expected).abs().max() < 5e-4, "a row is cut to 16 bits"
    assert torch.equal(linear(x)[:1], linear(x[:1])), "one row among many keeps its bits"
    assert linear.weight_bytes == 192 * 128
    if paired:
        gate, up = expected.chunk(2, dim=-1)
        assert near(linear.gated(x), torch.nn.functional.silu(gate) * up)
