"""Weights in groups, and whole ones of fp32: what they keep, and the compiled product against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdn.model.grouped import GROUP, GroupedLinear, group_weights
from kdn.model.kernels import KernelFloatLinear, KernelGroupedLinear, Kernels
from kdn.model.linear import Linear

SHAPES = [(64, 32), (64, 96), (960, 576), (576, 1536)]


def matrix(out_size: int, in_size: int) -> Tensor:
    random = torch.Generator().manual_seed(out_size + in_size)
    return torch.randn(out_size, in_size, generator=random).div_(in_size**0.5).bfloat16()


def some_rows(count: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_matrix_that_fits_the_grid_is_kept_exactly() -> None:
    """Sixteen steps of 0.25 reach from -2 to 1.75: 0.25 is the ninth of them, 0 the eighth."""
    group = torch.tensor([-2.0, 1.75, 0.25, 0.0] * (GROUP // 4))
    kept = group_weights(group.repeat(3, 2), bits=4)
    assert kept.scale.tolist() == [[0.25, 0.25]] * 3
    assert kept.low.tolist() == [[-2.0, -2.0]] * 3
    assert kept.q[0, :4].tolist() == [0, 15, 9, 8]
    assert torch.equal(kept.widened(torch.float32), group.repeat(3, 2))


def test_a_group_of_one_value_keeps_it() -> None:
    for value in (0.0, -3.5):
        group = torch.full((2, GROUP), value)
        assert torch.equal(group_weights(group, bits=4).widened(torch.float32), group)


@pytest.mark.parametrize(("bits", "error"), [(4, 0.083), (8, 0.0055)])
def test_the_error_of_gaussian_weights_is_that_of_their_grid(bits: int, error: float) -> None:
    """Root-mean-square against the weights' own; a search over scales beats reaching the largest."""
    weight = matrix(960, 576).float()
    kept = group_weights(weight, bits).widened(torch.float32)
    share = float((kept - weight).norm() / weight.norm())
    assert share < error
    half = 1 << (bits - 1)
    step = weight.view(960, -1, GROUP).abs().amax(-1, keepdim=True) / (half - 1)
    plain = (weight.view(960, -1, GROUP) / step).round() * step
    assert share < float((plain.view_as(weight) - weight).norm() / weight.norm())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 33, 600])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_product_is_the_twins(
    shape: tuple[int, int], count: int, bits: int, kernels: Kernels
) -> None:
    weight, x = group_weights(matrix(*shape), bits), some_rows(count, shape[1])
    bias, base = some_rows(1, shape[0], seed=2)[0], some_rows(count, shape[0], seed=3)
    linear = KernelGroupedLinear(kernels, weight, bias)
    exact = torch.nn.functional.linear(x.float(), weight.widened(torch.float32), bias.float())
    assert (linear.wide(x) - exact).abs().max() < 1e-4, "sums are fp32 throughout"
    near = 2**-8 * exact.abs() + 1e-2
    assert ((linear(x).float() - exact).abs() <= near).all()
    assert ((linear.onto(base, x).float() - exact - base.float()).abs() <= 2 * near).all()
    twin = GroupedLinear(weight, bias)
    assert ((twin(x).float() - exact).abs() <= 4 * near).all()
    assert twin.weight_bytes == linear.weight_bytes


def test_a_paired_matrix_gates_and_also_gives_both_halves(kernels: Kernels) -> None:
    weight, x = group_weights(matrix(192, 64), 4), some_rows(45, 64)
    gate, up = (x.float() @ weight.widened(torch.float32).T).chunk(2, dim=-1)
    paired = KernelGroupedLinear(kernels, weight, paired=True)
    assert (paired(x).float() - torch.cat((gate, up), dim=-1)).abs().max() < 0.03
    assert (paired.gated(x).float() - torch.nn.functional.silu(gate) * up).abs().max() < 0.03


@settings(max_examples=40)
@given(
    shape=st.sampled_from(SHAPES),
    bits=st.sampled_from((4, 8)),
    count=st.integers(1, 600),
    data=st.data(),
)
def test_any_cut_of_the_rows_gives_the_same_bits(
    shape: tuple[int, int], bits: int, count: int, data: st.DataObject, kernels: Kernels
) -> None:
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    linear = KernelGroupedLinear(kernels, group_weights(matrix(*shape), bits))
    x = some_rows(count, shape[1])
    assert torch.equal(linear(x[start:stop]), linear(x)[start:stop])


def float_rows(count: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def in_steps(x: Tensor) -> Tensor:
    """The nearest of 65,535 steps from each group's largest to its negative: what the kernel multiplies."""
    groups = x.view(len(x), -1, GROUP)
    most = groups.abs().amax(-1, keepdim=True)
    whole = (groups * (torch.tensor(32767.0) / most)).round()
    return (whole.double() * (most / 32767).double()).view_as(x)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 96, 97, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_product_of_fp32_rows_is_that_of_inputs_of_16_bits(
    shape: tuple[int, int], count: int, bits: int, floats: Kernels
) -> None:
    """Against sums in fp64: what is left is the rounding of fp32, and that of the inputs against none."""
    weight, x = group_weights(matrix(*shape).float(), bits), float_rows(count, shape[1])
    bias = float_rows(1, shape[0], seed=2)[0]
    linear = KernelGroupedLinear(floats, weight, bias)
    wide = weight.widened(torch.float32).double().T
    assert (linear(x) - (in_steps(x) @ wide + bias)).abs().max() < 2e-5
    assert (linear(x) - (x.double() @ wide + bias)).abs().max() < 2e-4
    assert (GroupedLinear(weight, bias)(x) - (x.double() @ wide + bias)).abs().max() < 2e-5
    assert linear.weight_bytes == GroupedLinear(weight).weight_bytes


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 7])
def test_the_largest_sums_of_a_group_fit_32_bits(bits: int, count: int, floats: Kernels) -> None:
    """31 of 32 weights are the top of their grid, and all inputs are the largest there is."""
    most = (1 << bits) - 1
    grid = torch.full((64, GROUP), float(most)).index_fill(1, torch.tensor([0]), 0.0)
    weight = group_weights(grid, bits)
    assert torch.equal(weight.widened(torch.float32), grid)
    linear = KernelGroupedLinear(floats, weight)
    for sign in (3.0, -3.0):
        found = linear(torch.full((count, GROUP), sign))
        assert torch.allclose(found, torch.full((count, 64), sign * 31 * most), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 7])
def test_a_group_of_tiny_or_broken_inputs_does_not_look_like_another(
    count: int, floats: Kernels
) -> None:
    """Inputs below 1e-30 count as 0; one that is no number or endless gives no number."""
    linear = KernelGroupedLinear(floats, group_weights(matrix(64, 96).float(), 4))
    x = float_rows(count, 96)
    x[:, :GROUP] = 1e-39
    zeroed = x.clone()
    zeroed[:, :GROUP] = 0
    assert torch.equal(linear(x), linear(zeroed))
    for broken in (float("nan"), float("inf")):
        x[:, 40] = broken
        assert linear(x).isnan().all()


def kept_in(floats: Kernels, weight: Tensor, bits: int, bias: Tensor) -> Linear:
    """The matrix of bf16 numbers in so many bits; a number that is no bf16 is added for 32."""
    if bits <= 8:
        return KernelGroupedLinear(floats, group_weights(weight, bits), bias)
    if bits == 32:
        weight = weight.index_fill(1, torch.tensor([0]), 0.1)
    made = KernelFloatLinear(floats, weight, bias)
    assert made.weight_bytes == weight.numel() * bits // 8
    return made


@settings(max_examples=60)
@given(
    shape=st.sampled_from(SHAPES),
    bits=st.sampled_from((4, 8, 16, 32)),
    count=st.integers(1, 250),
    data=st.data(),
)
def test_any_cut_of_fp32_rows_gives_the_same_bits(
    shape: tuple[int, int], bits: int, count: int, data: st.DataObject, floats: Kernels
) -> None:
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    bias = float_rows(1, shape[0], seed=2)[0]
    linear = kept_in(floats, matrix(*shape).float(), bits, bias)
    x = float_rows(count, shape[1])
    assert torch.equal(linear(x[start:stop]), linear(x)[start:stop])
    assert torch.equal(linear(x.T.contiguous().T[start:stop]), linear(x)[start:stop])


@pytest.mark.parametrize("count", [1, 2, 97])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_fp32_matrix_takes_half_the_bytes_where_its_numbers_are_bf16(
    shape: tuple[int, int], count: int, floats: Kernels
) -> None:
    """The product is the exact one but for the rounding of fp32, and that of the other numbers, too."""
    x, bias = float_rows(count, shape[1]), float_rows(1, shape[0], seed=2)[0]
    for weight, size in ((matrix(*shape).float(), 2), (matrix(*shape).float() * 1.001, 4)):
        linear = KernelFloatLinear(floats, weight, bias)
        assert linear.weight_bytes == size * weight.numel()
        assert (linear(x) - (x.double() @ weight.double().T + bias)).abs().max() < 2e-5
    paired = KernelFloatLinear(floats, matrix(*shape).float(), bias, paired=True)
    exact = x.double() @ matrix(*shape).double().T + bias
    gate, up = exact.chunk(2, dim=-1)
    assert (paired(x) - exact).abs().max() < 2e-5
    assert (paired.gated(x) - torch.nn.functional.silu(gate) * up).abs().max() < 2e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_paired_matrix_of_fp32_gates_and_adds_in_one_pass(
    bits: int, count: int, floats: Kernels
) -> None:
    weight, x = group_weights(matrix(192, 64).float(), bits), float_rows(count, 64)
    bias, base = float_rows(1, 192, seed=2)[0], float_rows(count, 192, seed=3)
    exact = in_steps(x) @ weight.widened(torch.float32).double().T + bias
    gate, up = exact.chunk(2, dim=-1)
    paired = KernelGroupedLinear(floats, weight, bias, paired=True)
    assert (paired(x) - exact).abs().max() < 5e-6
    assert (paired.onto(base, x) - exact - base).abs().max() < 5e-6
    assert (paired.gated(x) - torch.nn.functional.silu(gate) * up).abs().max() < 5e-6
    values = torch.tensor([[-300.0], [-90.0], [-1e-6], [0.0], [1e-6], [90.0], [300.0]])
    steep = values * torch.eye(64)[:1]
    identity = group_weights(torch.cat((torch.eye(64), torch.eye(64))), bits)
    kept = steep * identity.widened(torch.float32)[0, 0]
    found = KernelGroupedLinear(floats, identity, paired=True).gated(steep)
    assert torch.allclose(found, torch.nn.functional.silu(kept) * kept, rtol=1e-6, atol=1e-30)


def test_weights_of_broken_panels_are_left_to_torch(floats: Kernels) -> None:
    def suits(weight: Tensor, *, paired: bool = False) -> bool:
        return KernelGroupedLinear.suits(floats, weight, paired=paired)

    assert suits(torch.zeros(64, 32))
    assert suits(torch.zeros(64, 32), paired=True)
    assert not suits(torch.zeros(96, 32), paired=True), "half a panel of each"
    assert not suits(torch.zeros(48, 32)), "half a panel"
    assert not suits(torch.zeros(64, 48)), "half a group"
    assert not suits(torch.zeros(64, 32).bfloat16())
