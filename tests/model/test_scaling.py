"""Scaled columns: kernel and plain torch against attention written out, alone and in company."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdn.model.attention import (
    Attention,
    AttentionSlice,
    FusedAttention,
    Scaling,
    TorchAttention,
)
from kdn.model.config import RopeConfig
from kdn.model.kernels import KernelAttention
from kdn.model.rope import Rope, rotate
from tests.model.test_attention import SHAPES, Shape, kernel, qkv

__all__ = ["kernel"]


def a_scaling(columns: list[int], shape: Shape, factor: float, *, literal: bool = False) -> Scaling:
    """Each column by the factor, more for later heads."""
    heads = torch.linspace(0.5, 1.5, shape.heads)
    logs = math.log(factor) * heads.repeat(len(columns), 1)
    at = torch.tensor(columns)
    return Scaling(at, torch.zeros_like(logs), logs.exp()) if literal else Scaling(at, logs)


def a_slice(
    shape: Shape, rows: int, start: int, seed: int, dtype: torch.dtype
) -> tuple[AttentionSlice, Tensor, Tensor]:
    """Rows [start, rows) over columns that are in place; with rotated queries and V by column."""
    q, k, v = qkv(rows, shape, seed, dtype)
    cos, sin = Rope(RopeConfig(theta=10_000.0), shape.dim).tables(torch.arange(rows))
    own = -(-rows // 256) * 256
    suffix_k = torch.zeros(1, shape.kv_heads, own, shape.dim, dtype=k.dtype)
    suffix_v = torch.zeros(1, shape.kv_heads, shape.dim, own, dtype=k.dtype)
    suffix_k[0, :, :rows] = rotate(k, cos, sin).transpose(0, 1)
    suffix_v[0, :, :, :rows] = v.permute(1, 2, 0)
    part = AttentionSlice(0, rows - start, torch.arange(start, rows), suffix_k, suffix_v)
    return part, rotate(q, cos, sin)[start:], v


def run(
    attention: Attention,
    parts: list[tuple[AttentionSlice, Tensor]],
    scalings: list[Scaling | None],
    window: int | None = None,
) -> list[Tensor]:
    """The parts in one batch."""
    at, placed = 0, []
    for part, q in parts:
        placed.append(replace(part, start=at, stop=at + len(q)))
        at += len(q)
    tables = torch.zeros(at, parts[0][1].shape[2])
    bound = attention.bind(placed, tables, tables)
    out = bound.attend(0, torch.cat([q for _, q in parts]), window, scalings)
    plain = bound.attend(0, torch.cat([q for _, q in parts]), window)
    alone = attention.bind(placed, tables, tables).attend(
        0, torch.cat([q for _, q in parts]), window
    )
    assert torch.equal(plain, alone), "a call leaves no scaling behind"
    return [out[one.start : one.stop] for one in placed]


def written_out(
    part: AttentionSlice, q: Tensor, v: Tensor, scaling: Scaling, window: int | None
) -> Tensor:
    """Softmax in fp32 with the bias on the scores and the gain on the weights."""
    rows, group = v.shape[0], q.shape[1] // v.shape[1]
    k = part.suffix_k[0, :, :rows].float().repeat_interleave(group, 0)
    wide_v = v.float().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,hkd->hqk", q.float(), k) * q.shape[2] ** -0.5
    scores[:, :, scaling.columns] += scaling.bias.T[:, None]
    behind = part.positions[:, None] - torch.arange(rows)[None]
    scores = scores.masked_fill((behind < 0) | (behind >= (window or rows)), float("-inf"))
    weights = scores.softmax(-1)
    if scaling.gain is not None:
        weights[:, :, scaling.columns] *= scaling.gain.T[:, None]
    return torch.einsum("hqk,khd->qhd", weights, wide_v).flatten(1)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scaled_columns_are_those_of_attention_written_out(
    shape: Shape, window: int | None, literal: bool, kernel: KernelAttention
) -> None:
    part, q, v = a_slice(shape, 300, 0, seed=1, dtype=kernel.dtype)
    scaling = a_scaling([0, 5, 63, 64, 130, 299], shape, 3.0, literal=literal)
    expected = written_out(part, q, v, scaling, window)
    for attention in (kernel, TorchAttention(), FusedAttention()):
        (found,) = run(attention, [(part, q)], [scaling], window)
        assert torch.allclose(found.float(), expected, atol=0.03, rtol=0.02), attention


@settings(max_examples=30)
@given(
    rows=st.integers(2, 300),
    shape=st.sampled_from(SHAPES),
    columns=st.sets(st.integers(0, 299), min_size=1, max_size=40),
    factor=st.floats(0.01, 30),
    window=st.sampled_from([None, 70]),
    literal=st.booleans(),
)
def test_the_kernel_scales_as_plain_torch_does(
    rows: int,
    shape: Shape,
    columns: set[int],
    factor: float,
    window: int | None,
    literal: bool,
    kernel: KernelAttention,
) -> None:
    """Columns after the last row are named too, as in a prompt that is cut in passes."""
    part, q, _ = a_slice(shape, rows, rows // 2, seed=rows, dtype=kernel.dtype)
    scaling = a_scaling(sorted(columns), shape, factor, literal=literal)
    (fast,) = run(kernel, [(part, q)], [scaling], window)
    (plain,) = run(TorchAttention(), [(part, q)], [scaling], window)
    largest = max(1.0, float(plain.float().abs().max()) / 4) if literal else 1.0
    assert (fast.float() - plain.float()).abs().max() < 0.06 * largest


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gains_of_one_and_biases_of_nothing_are_the_identity(
    shape: Shape, kernel: KernelAttention
) -> None:
    """Bit for bit, through the code that scales."""
    part, q, _ = a_slice(shape, 130, 0, seed=2, dtype=kernel.dtype)
    columns = torch.arange(0, 130, 3)
    ones = torch.ones(len(columns), shape.heads)
    for attention in (kernel, TorchAttention()):
        (plain,) = run(attention, [(part, q)], [None])
        (found,) = run(attention, [(part, q)], [Scaling(columns, torch.zeros_like(ones), ones)])
        assert torch.equal(found, plain), attention


def test_a_column_may_have_both_a_bias_and_a_gain(kernel: KernelAttention) -> None:
    """Doubled before the softmax, and what comes of it tripled."""
    shape = SHAPES[0]
    part, q, v = a_slice(shape, 100, 0, seed=4, dtype=kernel.dtype)
    columns = torch.tensor([0, 30, 64])
    heads = torch.full((3, shape.heads), 3.0)
    both = Scaling(columns, torch.full((3, shape.heads), math.log(2)), heads)
    expected = written_out(part, q, v, both, None)
    for attention in (kernel, TorchAttention()):
        (found,) = run(attention, [(part, q)], [both])
        assert torch.allclose(found.float(), expected, atol=0.05, rtol=0.02), attention


@pytest.mark.parametrize("literal", [False, True])
def test_neighbours_of_a_scaled_sequence_keep_their_bits(
    literal: bool, kernel: KernelAttention
) -> None:
    shape = SHAPES[0]
    scaling = a_scaling([3, 100], shape, 5.0, literal=literal)
    parts = [a_slice(shape, rows, 0, seed=rows, dtype=kernel.dtype)[:2] for rows in (70, 130, 65)]
    plain = run(kernel, parts, [None, None, None])
    scaled = run(kernel, parts, [None, scaling, None])
    assert torch.equal(scaled[0], plain[0])
    assert torch.equal(scaled[2], plain[2])
    assert not torch.equal(scaled[1], plain[1])
    (alone,) = run(kernel, parts[1:2], [scaling])
    assert torch.equal(scaled[1], alone), "and it keeps its own"


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_sequences_that_share_a_prefix_only_the_scaled_ones_change(
    shape: Shape, literal: bool, kernel: KernelAttention
) -> None:
    """Twenty decoded rows side by side, in groups that read the prefix once; two are scaled."""
    generator = torch.Generator().manual_seed(3)
    prefix_k = torch.randn(1, shape.kv_heads, 192, shape.dim, generator=generator).to(kernel.dtype)
    prefix_v = torch.randn(1, shape.kv_heads, shape.dim, 192, generator=generator).to(kernel.dtype)
    parts = []
    for number in range(20):
        part, q, _ = a_slice(shape, 40, 39, seed=number, dtype=kernel.dtype)
        shared = replace(
            part,
            positions=part.positions + 192,
            prefix_k=prefix_k,
            prefix_v=prefix_v,
            num_prefix=192,
        )
        parts.append((shared, q))
    scalings: list[Scaling | None] = [None] * 20
    scalings[3] = a_scaling([7, 100, 191, 200], shape, 6.0, literal=literal)
    scalings[4] = a_scaling([0, 100, 230], shape, 0.2, literal=not literal)
    plain = run(kernel, parts, [None] * 20)
    found = run(kernel, parts, scalings)
    changed = [number for number in range(20) if not torch.equal(found[number], plain[number])]
    assert changed == [3, 4]
    for number in changed:
        (expected,) = run(TorchAttention(), parts[number : number + 1], [scalings[number]])
        assert torch.allclose(found[number].float(), expected.float(), atol=0.05, rtol=0.02)
        (alone,) = run(kernel, parts[number : number + 1], [scalings[number]])
        assert torch.equal(found[number], alone), "its bits do not depend on the company"
