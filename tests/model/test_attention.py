"""The compiled kernel and plain torch against attention written out in fp32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdn.core import LayerKV
from kdn.model.attention import (
    Attention,
    AttentionSlice,
    FusedAttention,
    TorchAttention,
    Writing,
    row_cuts,
)
from kdn.model.config import RopeConfig
from kdn.model.kernels import KernelAttention, Kernels, NoKernel, load
from kdn.model.rope import Rope, rotate


@pytest.fixture(scope="module", params=["amx", "avx512", "fp32"])
def kernel(request: pytest.FixtureRequest) -> KernelAttention:
    """Both ways that the kernel of bf16 multiplies, and the kernel of fp32."""
    if request.param == "fp32":
        return KernelAttention(request.getfixturevalue("floats"))
    kernels: Kernels = request.getfixturevalue("kernels")
    if request.param == "avx512":
        return KernelAttention(replace(kernels, has_amx=False))
    if not kernels.has_amx:
        pytest.skip("the processor has no AMX")
    return KernelAttention(kernels)


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int


ROUNDING = {torch.bfloat16: 0.03, torch.float32: 5e-6}
"""What values of size 1 may be off in each."""
SHAPES = [Shape(9, 3, 64), Shape(14, 2, 64), Shape(4, 4, 128), Shape(2, 1, 256)]


def qkv(
    rows: int, shape: Shape, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (torch.randn(rows, n, shape.dim, generator=generator).to(dtype) for n in sizes)
    return q, k, v


def attend(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_prefix: int = 0,
    window: int | None = None,
    start: int = 0,
) -> Tensor:
    """Rows from `start` on, with the first `num_prefix` columns in a head. [rows, heads * dim]."""
    rows, dim = k.shape[0], k.shape[2]
    cos, sin = Rope(RopeConfig(theta=10_000.0), dim).tables(torch.arange(rows))
    own = -(-(rows - num_prefix) // 256) * 256
    suffix_k = torch.zeros(1, k.shape[1], own, dim, dtype=k.dtype)
    suffix_v = torch.zeros(1, k.shape[1], dim, own, dtype=k.dtype)
    padded = -(-num_prefix // 64) * 64
    prefix_k = torch.zeros(1, k.shape[1], padded, dim, dtype=k.dtype)
    prefix_v = torch.zeros(1, k.shape[1], dim, padded, dtype=k.dtype)
    before, after = slice(0, num_prefix), slice(num_prefix, rows)
    if num_prefix:
        at = torch.arange(num_prefix)
        run = LayerKV(k[before], v[before])
        attention.write([run], cos[before], sin[before], prefix_k[0], prefix_v[0], at)
    at = torch.arange(rows - num_prefix)
    attention.write(
        [LayerKV(k[after], v[after])], cos[after], sin[after], suffix_k[0], suffix_v[0], at
    )
    part = AttentionSlice(
        0,
        rows - start,
        torch.arange(start, rows),
        suffix_k,
        suffix_v,
        prefix_k,
        prefix_v,
        num_prefix,
    )
    bound = attention.bind([part], cos[start:], sin[start:])
    turned = bound.place(0, q[start:], k[start:], v[start:])
    return bound.attend(0, turned, window)


def written_out(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Softmax attention in fp32 over the same values."""
    rows, heads, dim = q.shape
    rope = Rope(RopeConfig(theta=10_000.0), dim)
    cos, sin = rope.tables(torch.arange(rows))
    q, k = rotate(q, cos, sin).float(), rotate(k, cos, sin).float()
    group = heads // k.shape[1]
    k, wide_v = k.repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * dim**-0.5
    behind = torch.arange(rows)[:, None] - torch.arange(rows)[None]
    scores = scores.masked_fill((behind < 0) | (behind >= (window or rows)), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), wide_v).flatten(1)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_are_attention(shape: Shape, window: int | None, kernel: KernelAttention) -> None:
    q, k, v = qkv(300, shape, dtype=kernel.dtype)
    expected = written_out(q, k, v, window)
    for attention in (kernel, TorchAttention(), FusedAttention()):
        error = (attend(attention, q, k, v, window=window).float() - expected).abs().max()
        assert error < ROUNDING[kernel.dtype], type(attention).__name__


@settings(max_examples=40)
@given(
    rows=st.integers(1, 400),
    data=st.data(),
    shape=st.sampled_from(SHAPES),
    window=st.sampled_from([None, 1, 77, 200]),
)
def test_the_kernel_gives_the_same_bits_however_prefix_and_rows_are_cut(
    rows: int, data: st.DataObject, shape: Shape, window: int | None, kernel: KernelAttention
) -> None:
    num_prefix = data.draw(st.integers(0, rows - 1), label="columns in the prefix")
    start = data.draw(st.integers(num_prefix, rows - 1), label="first row")
    q, k, v = qkv(rows, shape, dtype=kernel.dtype)
    whole = attend(kernel, q, k, v, window=window)
    part = attend(kernel, q, k, v, window=window, num_prefix=num_prefix, start=start)
    assert torch.equal(part, whole[start:])


@pytest.mark.parametrize(("rows", "threads"), [(201, 1), (1001, 3)])
@pytest.mark.parametrize("window", [None, 1, 77, 700])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_last_rows_alone_get_the_bits_they_get_among_all(
    shape: Shape, window: int | None, rows: int, threads: int, kernel: KernelAttention
) -> None:
    # One to eight rows: of so few queries the way without AMX computes columns side by side.
    torch.set_num_threads(threads)
    q, k, v = qkv(rows, shape, dtype=kernel.dtype)
    whole = attend(kernel, q, k, v, window=window)
    for count in range(1, 9):
        for num_prefix in (0, 64, 130):
            part = attend(kernel, q, k, v, window=window, num_prefix=num_prefix, start=rows - count)
            assert torch.equal(part, whole[-count:]), (count, num_prefix)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 400),
    data=st.data(),
    shape=st.sampled_from(SHAPES),
    window=st.sampled_from([None, 1, 77, 200]),
)
def test_the_kernel_looks_at_columns_as_plain_torch_does(
    rows: int, data: st.DataObject, shape: Shape, window: int | None, kernel: KernelAttention
) -> None:
    """Some rows of a part, its columns cut anywhere: the same mass within rounding of the scores."""
    num_prefix = data.draw(st.integers(0, rows - 1), label="columns in the prefix")
    some = st.lists(st.integers(num_prefix, rows - 1), min_size=1, max_size=40, unique=True)
    positions = torch.tensor(sorted(data.draw(some, label="who looks")))
    generator = torch.Generator().manual_seed(rows)
    own = -(-(rows - num_prefix) // 256) * 256
    prefix_k = torch.randn(1, shape.kv_heads, num_prefix, shape.dim, generator=generator).to(
        kernel.dtype
    )
    suffix_k = torch.randn(1, shape.kv_heads, own, shape.dim, generator=generator).to(kernel.dtype)
    prefix_v, suffix_v = (
        torch.zeros_like(k).transpose(2, 3).contiguous() for k in (prefix_k, suffix_k)
    )
    where = torch.arange(num_prefix, rows)
    part = AttentionSlice(0, len(where), where, suffix_k, suffix_v, prefix_k, prefix_v, num_prefix)
    q = torch.randn(len(positions), shape.heads, shape.dim, generator=generator).to(kernel.dtype)
    found = kernel.mass(q, positions, part, 0, window)
    expected = TorchAttention().mass(q.float(), positions, _wide(part), 0, window)
    assert found.shape == expected.shape == (rows,)
    assert found.sum() == pytest.approx(len(positions) * shape.heads, rel=1e-4)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def _wide(part: AttentionSlice) -> AttentionSlice:
    assert part.prefix_k is not None
    return replace(part, suffix_k=part.suffix_k.float(), prefix_k=part.prefix_k.float())


def test_where_nobody_looks_there_is_no_mass(kernel: KernelAttention) -> None:
    shape, where = SHAPES[0], torch.arange(5)
    suffix_k = torch.ones(1, shape.kv_heads, 64, shape.dim, dtype=kernel.dtype)
    part = AttentionSlice(0, 5, where, suffix_k, suffix_k.transpose(2, 3).contiguous())
    q = torch.empty(0, shape.heads, shape.dim, dtype=kernel.dtype)
    for attention in (kernel, TorchAttention()):
        assert attention.mass(q, where[:0], part, 0, None).tolist() == [0.0] * 5


def test_many_writes_at_once_are_those_made_one_by_one(kernel: KernelAttention) -> None:
    """Nine places of 1 to 257 columns, each of two runs but the first."""
    shape, rope = SHAPES[0], Rope(RopeConfig(theta=10_000.0), SHAPES[0].dim)
    alone: list[Writing] = []
    together: list[Writing] = []
    for number, rows in enumerate((1, 2, 15, 16, 17, 33, 128, 256, 257)):
        _, k, v = qkv(rows, shape, number, kernel.dtype)
        cut = rows // 2
        runs = [LayerKV(k[a:b], v[a:b]) for a, b in ((0, cut), (cut, rows)) if a < b]
        runs[0] = replace(runs[0], shift=k.mean(dim=0))
        for found in (alone, together):
            to_k = torch.zeros(shape.kv_heads, 320, shape.dim, dtype=k.dtype)
            to_v = torch.zeros(shape.kv_heads, shape.dim, 320, dtype=k.dtype)
            at = torch.arange(rows)
            found.append(Writing(runs, *rope.tables(at), to_k, to_v, at))
    for one in alone:
        kernel.write(one.runs, one.cos, one.sin, one.to_k, one.to_v, one.at)
    kernel.write_all(together)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.to_k, other.to_k)
        assert torch.equal(one.to_v, other.to_v)
        settled = [run.shifted() for run in one.runs]
        kernel.write(settled, one.cos, one.sin, other.to_k, other.to_v, one.at)
        assert torch.equal(one.to_k, other.to_k), "a shift is added and rounded before the rotation"


def test_sequences_that_share_a_prefix_get_the_bits_they_get_alone(kernel: KernelAttention) -> None:
    """Seven sequences over one prefix of 300 columns, each one row further into its own suffix."""
    shape, num_prefix = SHAPES[0], 300
    q, k, v = qkv(7, shape, 3, kernel.dtype)
    _, shared_k, shared_v = qkv(num_prefix, shape, dtype=kernel.dtype)
    rope = Rope(RopeConfig(theta=10_000.0), shape.dim)
    prefix_k = torch.zeros(1, shape.kv_heads, 320, shape.dim, dtype=k.dtype)
    prefix_v = torch.zeros(1, shape.kv_heads, shape.dim, 320, dtype=k.dtype)
    at = torch.arange(num_prefix)
    kernel.write([LayerKV(shared_k, shared_v)], *rope.tables(at), prefix_k[0], prefix_v[0], at)

    def part(number: int, start: int) -> AttentionSlice:
        generator = torch.Generator().manual_seed(number)
        size = (1, shape.kv_heads, 256, shape.dim)
        suffix_k = torch.randn(size, generator=generator).to(kernel.dtype)
        suffix_v = (
            torch.randn(size, generator=generator).to(kernel.dtype).transpose(2, 3).contiguous()
        )
        where = torch.tensor([num_prefix + 20 * number])
        return AttentionSlice(
            start, start + 1, where, suffix_k, suffix_v, prefix_k, prefix_v, num_prefix
        )

    def run(numbers: list[int]) -> Tensor:
        slices = [part(number, row) for row, number in enumerate(numbers)]
        cos, sin = rope.tables(torch.cat([one.positions for one in slices]))
        bound = kernel.bind(slices, cos, sin)
        turned = bound.place(0, q[numbers], k[numbers], v[numbers])
        return bound.attend(0, turned, None)

    together = run(list(range(7)))
    for number in range(7):
        assert torch.equal(run([number])[0], together[number])
    plain = TorchAttention()
    slices = [part(number, number) for number in range(7)]
    cos, sin = rope.tables(torch.cat([one.positions for one in slices]))
    bound = plain.bind(slices, cos, sin)
    expected = bound.attend(0, bound.place(0, q, k, v), None)
    assert (together.float() - expected.float()).abs().max() < ROUNDING[kernel.dtype]


def test_in_plain_torch_a_cut_anywhere_gives_the_same_bits() -> None:
    q, k, v = qkv(300, SHAPES[0])
    whole = attend(TorchAttention(), q, k, v)
    for num_prefix in (1, 64, 127, 128, 200):
        part = attend(TorchAttention(), q, k, v, num_prefix=num_prefix, start=num_prefix)
        assert torch.equal(part, whole[num_prefix:])


@pytest.mark.parametrize("shape", SHAPES)
def test_in_plain_torch_few_rows_get_the_bits_they_get_in_a_whole_block(shape: Shape) -> None:
    """One token, a token with 1 to 8 guessed ones, a short question: each behind all columns before it."""
    for q, k, v in (qkv(256, shape), tuple(x.float() for x in qkv(256, shape))):
        whole = attend(TorchAttention(), q, k, v)
        for count in (1, 2, 3, 5, 9, 24, 70):
            few = attend(TorchAttention(), q, k, v, start=256 - count)
            assert torch.equal(few, whole[256 - count :])


def test_rows_in_a_run_are_cut_at_multiples_of_128_and_others_by_count() -> None:
    assert row_cuts(torch.arange(100, 300)) == [(0, 28), (28, 156), (156, 200)]
    assert row_cuts(torch.tensor([3, 900])) == [(0, 2)]
    scattered = torch.arange(0, 600, 2)
    assert row_cuts(scattered) == [(0, 128), (128, 256), (256, 300)]


def test_without_a_compiler_there_is_no_kernel_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoKernel, match=r"no C compiler|no AVX512|Linux on x86-64"):
        load(tmp_path / "cache")
