"""A row's product does not depend on the rows beside it; packing changes only the time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdn.model.linear import Int8Linear, Linear, PackedLinear, PlainLinear, build_linear

ROW_COUNTS = (1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64, 100, 127, 128, 129, 150, 200, 255, 256, 500)


def matrix(out_size: int, in_size: int, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(out_size + in_size)
    weight = torch.randn(out_size, in_size, generator=random)
    return weight.div_(in_size**0.5).to(dtype)


def rows(count: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(params=[1, 2, 3, 8])
def num_threads(request: pytest.FixtureRequest) -> int:
    """As many threads for torch, more than there are processors or not."""
    torch.set_num_threads(request.param)
    return int(request.param)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (96, 64), (96, 768)])
def test_any_number_of_rows_gives_the_same_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear = build_linear(matrix(*shape, dtype))
    if not isinstance(linear, PackedLinear):
        pytest.skip("this torch has no oneDNN, and the promise is made with it")
    x = rows(1000, shape[1], dtype)
    whole = linear(x)
    for count in ROW_COUNTS:
        for start in (0, 7, 1000 - count):
            some = linear(x[start : start + count])
            assert torch.equal(some, whole[start : start + count]), (count, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(96, 768), (8, 4096), (16, 896), (896, 16)])
def test_any_number_of_threads_gives_the_same_bits(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """When it is laid out and when it multiplies: KV of all goes by one name. Adapters are such matrices."""
    x = rows(300, shape[1], dtype)
    torch.set_num_threads(1)
    whole = build_linear(matrix(*shape, dtype))(x)
    for laid_out in (2, 3, 8):
        torch.set_num_threads(laid_out)
        linear = build_linear(matrix(*shape, dtype))
        if not isinstance(linear, PackedLinear):
            pytest.skip("this torch has no oneDNN, and the promise is made with it")
        for multiplies in (1, 2, 3, 8):
            torch.set_num_threads(multiplies)
            for count in (1, 2, 5, 16, 17, 64, 129, 300):
                assert torch.equal(linear(x[:count]), whole[:count]), (laid_out, multiplies, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("in_size", [64, 576, 1536, 4864])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_equals_plain_to_rounding(in_size: int, dtype: torch.dtype, with_bias: bool) -> None:
    weight, x = matrix(96, in_size, dtype), rows(5, in_size, dtype)
    bias = matrix(1, 96, dtype)[0] if with_bias else None
    packed, plain = build_linear(weight, bias)(x), PlainLinear(weight, bias)(x)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(packed.float(), plain.float(), atol=tolerance)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("in_size", [64, 1536])
def test_onto_a_base_is_a_sum_of_independent_rows(in_size: int, dtype: torch.dtype) -> None:
    linear = build_linear(matrix(96, in_size, dtype))
    x, base = rows(300, in_size, dtype), rows(300, 96, dtype)
    before = base.clone()
    whole = linear.onto(base, x)
    assert torch.equal(base, before)
    assert torch.allclose(whole.float(), base.float() + linear(x).float(), atol=0.05)
    for start, stop in ((0, 1), (7, 9), (0, 33), (100, 250)):
        part = linear.onto(base[start:stop], x[start:stop])
        assert torch.equal(part, whole[start:stop]), (start, stop)


def test_the_result_is_the_callers_to_change() -> None:
    linear = build_linear(matrix(96, 64, torch.float32))
    x = rows(1, 64, torch.float32)
    first = linear(x)
    before = first.clone()
    first.add_(1.0)
    assert torch.equal(linear(x), before)


def int8_error(linear: Linear, weight: Tensor, x: Tensor) -> float:
    exact = functional.linear(x.float(), weight.float())
    return float((linear(x).float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 4, 5, 40])
def test_int8_stays_within_a_percent(count: int, dtype: torch.dtype) -> None:
    weight = matrix(96, 576, dtype)
    assert int8_error(Int8Linear(weight), weight, rows(count, 576, dtype)) < 0.01


def test_int8_halves_the_bytes() -> None:
    weight = matrix(96, 576, torch.bfloat16)
    assert Int8Linear(weight).weight_bytes == 96 * 576 + 2 * 96
    assert PlainLinear(weight).weight_bytes == 2 * 96 * 576


def test_int8_keeps_integers_as_they_are() -> None:
    """Row 0 holds 127 steps of 1/128 and row 1 nothing: both come back exactly."""
    weight = torch.zeros(2, 64)
    weight[0] = torch.arange(64) / 128
    weight[0, 0] = 127 / 128
    product = Int8Linear(weight)(torch.eye(64)[:3])
    assert torch.equal(product[:, 0], weight[0, :3])
    assert torch.equal(product[:, 1], torch.zeros(3))
