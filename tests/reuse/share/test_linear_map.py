"""The linear map finds what is linear, leaves alone what is noise, and holds at any position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdn.core import LayerKV
from kdn.errors import BadInput
from kdn.reuse.share import LinearMap, MapFit
from kdn.reuse.share.linear_map import load_map, save_map
from tests.engine.runs import HeldSource

LAYERS, HEADS, DIM = 2, 2, 4
WIDTH = 2 * HEADS * DIM


def kv(num_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((LAYERS, 2, num_tokens, HEADS, DIM), generator=generator)


def fitted(change: LinearMap, noise: float = 0.0, texts: int = 10) -> LinearMap:
    fit = MapFit(LAYERS, WIDTH)
    for seed in range(texts):
        sender = kv(40, seed)
        fit.add(sender, applied(change, sender) + noise * kv(40, 1000 + seed))
    assert fit.num_tokens == 40 * texts
    return fit.solve()


def applied(change: LinearMap, sender: torch.Tensor) -> torch.Tensor:
    done = [change.layer(n, LayerKV(*sender[n])) for n in range(LAYERS)]
    return torch.stack([torch.stack((one.k, one.v)) for one in done])


@pytest.fixture
def change() -> LinearMap:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn((LAYERS, WIDTH, WIDTH), generator=generator) / 4
    return LinearMap(weight, torch.ones(LAYERS, WIDTH))


def test_a_linear_change_is_found(change: LinearMap) -> None:
    found = fitted(change)
    unseen = kv(30, 77)
    assert (applied(found, unseen) - applied(change, unseen)).abs().max() < 0.02


def test_noise_is_not_learnt() -> None:
    """Nothing relates the two: what a map says of unseen KV is hardly more than plain reuse."""
    nothing = LinearMap(torch.zeros(LAYERS, WIDTH, WIDTH), torch.zeros(LAYERS, WIDTH))
    found = fitted(nothing, noise=1.0)
    unseen = kv(200, 78)
    assert (applied(found, unseen) - unseen).square().mean() < 0.1


def test_equal_models_have_no_map(change: LinearMap) -> None:
    nothing = LinearMap(torch.zeros(LAYERS, WIDTH, WIDTH), torch.zeros(LAYERS, WIDTH))
    found = fitted(nothing)
    assert not found.weight.any()
    assert not found.offset.any()


def test_a_source_is_mapped_run_by_run(change: LinearMap) -> None:
    sender = kv(9, 5)
    source = change.over(HeldSource(sender))
    assert (source.num_tokens, source.name) == (9, f"held, mapped by {change.digest}")
    for layer in range(LAYERS):
        source.start(layer)
        k = torch.cat([run.k for run in source.take(layer)])
        assert torch.allclose(k, applied(change, sender)[layer, 0], atol=1e-5)
    source.close()


def test_runs_are_mapped_together_with_the_bits_of_each_alone() -> None:
    """A layer of SmolLM2-135M's width in bf16; 201 tokens come as runs of 100 and 101."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn((1, 384, 384), generator=generator) / 16
    wide = LinearMap(weight, torch.ones(1, 384))
    held = HeldSource(torch.randn((1, 2, 201, 3, 64), generator=generator).bfloat16())
    source = wide.over(held)
    source.start(0)
    (together,) = source.take(0)
    alone = [wide.layer(0, run) for run in held.take(0)]
    assert torch.equal(together.k, torch.cat([one.k for one in alone]))
    assert torch.equal(together.v, torch.cat([one.v for one in alone]))


def test_a_shift_is_part_of_the_keys(change: LinearMap) -> None:
    k, v = kv(5, 6)[0]
    shift = torch.full((HEADS, DIM), 2.0)
    shifted = change.layer(0, LayerKV(k, v, shift))
    assert torch.equal(shifted.k, change.layer(0, LayerKV(k + shift, v)).k)


def test_it_is_kept_and_read_again(change: LinearMap, tmp_path: Path) -> None:
    path = tmp_path / "pair" / "map.safetensors"
    save_map(path, change)
    found = load_map(path, LAYERS, WIDTH)
    assert found is not None
    assert torch.equal(found.weight, change.weight)
    assert load_map(path, LAYERS + 1, WIDTH) is None
    assert load_map(path, LAYERS, WIDTH + 8) is None
    path.write_bytes(path.read_bytes()[:-7])
    assert load_map(path, LAYERS, WIDTH) is None
    assert load_map(tmp_path / "absent", LAYERS, WIDTH) is None


def test_shapes_that_differ_and_too_few_texts_are_refused(change: LinearMap) -> None:
    fit = MapFit(LAYERS, WIDTH)
    with pytest.raises(BadInput, match="only models of one shape"):
        fit.add(kv(4, 0), kv(5, 0))
    with pytest.raises(BadInput, match="too few to fit"):
        fit.solve()
