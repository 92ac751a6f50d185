"""Layouts are read from the tensors: every known one gives the same K and V, any other is refused."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from kdn.errors import BadInput
from kdn.scale.paged import PagedKv, PagedLayer, PagedShape

BLOCKS, HEADS, SIZE, DIM = 5, 2, 8, 4
SHAPE = PagedShape(BLOCKS, SIZE, HEADS, DIM)


def packed() -> Tensor:
    return torch.arange(BLOCKS * HEADS * SIZE * 2 * DIM, dtype=torch.float32).view(
        BLOCKS, HEADS, SIZE, 2 * DIM
    )


def layouts() -> dict[str, Tensor]:
    """The same K and V in each layout that vLLM has had."""
    k, v = packed()[..., :DIM], packed()[..., DIM:]
    both = torch.stack([k.transpose(1, 2), v.transpose(1, 2)])
    return {"packed": packed(), "pair first": both, "pair second": both.transpose(0, 1)}


@pytest.mark.parametrize("name", layouts())
def test_every_known_layout_gives_the_same_k_and_v(name: str) -> None:
    layer = PagedLayer.read("0", layouts()[name], SHAPE)
    assert torch.equal(layer.k, packed()[..., :DIM])
    assert torch.equal(layer.v, packed()[..., DIM:])


def test_a_latent_that_all_heads_share_is_one_head() -> None:
    latent = torch.arange(BLOCKS * SIZE * 6, dtype=torch.float32).view(BLOCKS, SIZE, 6)
    layer = PagedLayer.read("0", latent, PagedShape(BLOCKS, SIZE, 1, 3))
    assert torch.equal(layer.k[:, 0], latent[..., :3])
    assert torch.equal(layer.v[:, 0], latent[..., 3:])


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(BLOCKS, SIZE, HEADS, 2 * DIM), "fits no layout"),
        (torch.zeros(3, BLOCKS, SIZE, HEADS, DIM), "fits no layout"),
        (torch.zeros(()), "fits no layout"),
        (torch.zeros(BLOCKS, HEADS, SIZE, 2 * DIM, dtype=torch.uint8), "caches uint8"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(tensor: Tensor, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        PagedLayer.read("model.layers.0", tensor, SHAPE)


@pytest.mark.parametrize(("size", "fits"), [(16, True), (256, True), (96, False), (512, False)])
def test_packed_blocks_fill_those_of_the_store(size: int, fits: bool) -> None:
    """Of 96 tokens the third block holds 192 to 288; its first 64 rows hold parts of all these tokens.

    Stored as tokens 192 to 256, they would be found for a prompt whose 257th token is another.
    """
    cache = {"0": torch.zeros(BLOCKS, HEADS, size, 2 * DIM)}
    shape = PagedShape(BLOCKS, size, HEADS, DIM)
    PagedKv(cache, shape)
    refused = pytest.raises(BadInput, match=f"packs blocks of {size} tokens, .* block size to 16")
    with nullcontext() if fits else refused:
        PagedKv(cache, shape, lambda *_: None)


def test_no_tensors_at_all_are_refused() -> None:
    with pytest.raises(BadInput, match="no KV cache tensors"):
        PagedKv({}, SHAPE)


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (0, 24), (3, 21), (8, 16), (9, 10)])
def test_a_run_is_k_then_v_by_tokens_and_writing_it_puts_it_back(start: int, stop: int) -> None:
    """Tokens 3 to 21 lie in blocks 4, 0 and 2, in that order."""
    cache = PagedKv({"0": packed()}, SHAPE)
    table = (4, 0, 2)
    copied = cache.copy_blocks(table)
    data = torch.frombuffer(bytearray(copied.run(0, start, stop)), dtype=torch.float32)
    k, v = data.view(2, stop - start, HEADS, DIM)
    for number, position in enumerate(range(start, stop)):
        block, offset = divmod(position, SIZE)
        assert torch.equal(k[number], packed()[table[block], :, offset, :DIM])
        assert torch.equal(v[number], packed()[table[block], :, offset, DIM:])

    empty = PagedKv({"0": torch.zeros_like(packed())}, SHAPE)
    empty.write(0, table, start, k, v)
    again = empty.copy_blocks(table).run(0, start, stop)
    assert bytes(again) == bytes(copied.run(0, start, stop))
    written = (stop - start) * HEADS * 2 * DIM
    assert int((empty.layers[0].k != 0).sum() + (empty.layers[0].v != 0).sum()) <= written


def test_a_copy_does_not_follow_what_the_engine_writes_later() -> None:
    cache = PagedKv({"0": packed()}, SHAPE)
    copied = cache.copy_blocks([1])
    before = bytes(copied.run(0, 0, SIZE))
    cache.layers[0].k.zero_()
    assert bytes(copied.run(0, 0, SIZE)) == before
    assert copied.size_bytes == HEADS * SIZE * 2 * DIM * 4


def test_tokens_that_were_computed_elsewhere_go_through_the_engine_s_own_writer() -> None:
    """Tokens 126 to 129 lie in the last two slots of block 3 and the first two of block 5."""
    seen: list[list[int]] = []
    tensors = {"layer": torch.zeros(8, 2, 128, 8)}

    def scatter(tensor: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
        assert tensor is tensors["layer"]
        assert k.shape == v.shape == (4, 2, 4)
        seen.append(slots.tolist())

    k = torch.ones(4, 2, 4)
    PagedKv(tensors, PagedShape(8, 128, 2, 4), scatter).write_tokens(0, (3, 5), 126, k, k)
    assert seen == [[3 * 128 + 126, 3 * 128 + 127, 5 * 128, 5 * 128 + 1]]
    assert not tensors["layer"].any()


def test_without_a_writer_tokens_are_written_as_blocks_are() -> None:
    tensors = {"layer": torch.zeros(8, 2, 128, 8)}
    cache = PagedKv(tensors, PagedShape(8, 128, 2, 4))
    k, v = torch.full((2, 2, 4), 1.0), torch.full((2, 2, 4), 2.0)
    cache.write_tokens(0, (6,), 1, k, v)
    assert torch.equal(cache.layers[0].k[6, :, 1:3], k.transpose(0, 1))
    assert torch.equal(cache.layers[0].v[6, :, 1:3], v.transpose(0, 1))
    assert tensors["layer"].sum() == 2 * 8 * 1.0 + 2 * 8 * 2.0
