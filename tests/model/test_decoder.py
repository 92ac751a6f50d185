"""A layer's rows are independent, bitwise; adapters touch their own rows only; names are honest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdn.model import Decoder, load_model
from kdn.model.decoder import Ends, Identity
from kdn.model.rope import rotate

Tiny = Callable[..., Path]


def through(decoder: Decoder, hidden: Tensor, attended: Tensor) -> list[Tensor]:
    """Everything a layer computes of some rows, all rotated to the same place."""
    layer = decoder.layers[0]
    cos, sin = decoder.rope.tables(torch.full((len(hidden),), 77))
    q, k, v = layer.qkv(hidden)
    turned = [rotate(part, cos, sin) for part in (q, k)]
    out = layer.finish(hidden, attended)
    some = torch.tensor([7, 99])
    return [*turned, v, out, decoder.logits(out), decoder.logits(out, some)]


def same_in_parts(decoder: Decoder, num_rows: int) -> None:
    config = decoder.config
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, config.hidden_size, generator=random).to(decoder.dtype)
    attended = torch.randn(num_rows, config.q_size, generator=random).to(decoder.dtype)
    whole = through(decoder, hidden, attended)
    for start, stop in ((0, 1), (5, 6), (3, 5), (0, 33), (num_rows - 129, num_rows)):
        part = through(decoder, hidden[start:stop], attended[start:stop])
        names = ("q", "k", "v", "out", "logits", "some logits")
        for name, ours, theirs in zip(names, part, whole, strict=True):
            assert torch.equal(ours, theirs[start:stop]), (name, start, stop)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_rows_of_a_tiny_layer_do_not_depend_on_each_other(
    family: str, dtype: str, tiny_model: Tiny, model_cache: Path
) -> None:
    same_in_parts(load_model(tiny_model(family), cache_dir=model_cache, dtype=dtype).decoder, 300)


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_smollm2_do_not_depend_on_each_other(
    dtype: str, smollm2: Path, model_cache: Path
) -> None:
    same_in_parts(load_model(smollm2, cache_dir=model_cache, dtype=dtype).decoder, 600)


def test_inputs_are_left_as_they_were(tiny_model: Tiny, model_cache: Path) -> None:
    decoder = load_model(tiny_model("qwen3"), cache_dir=model_cache, dtype="float32").decoder
    hidden, attended = torch.randn(3, 64), torch.randn(3, 64)
    before = hidden.clone(), attended.clone()
    through(decoder, hidden, attended)
    assert torch.equal(hidden, before[0])
    assert torch.equal(attended, before[1])


def test_the_fingerprint_names_what_kv_depends_on(tiny_model: Tiny, model_cache: Path) -> None:
    folder = tiny_model("llama")

    def fingerprint(folder: Path, dtype: str = "float32", quantization: str = "none") -> str:
        loaded = load_model(folder, cache_dir=model_cache, dtype=dtype, quantization=quantization)
        return loaded.decoder.fingerprint

    ours = fingerprint(folder)
    assert fingerprint(folder) == ours
    assert fingerprint(tiny_model("llama")) == ours, "the same weights at another place"
    others = {
        fingerprint(folder, "bfloat16"),
        fingerprint(folder, quantization="int8"),
        fingerprint(folder, quantization="int4"),
        fingerprint(tiny_model("llama", seed=1)),
        fingerprint(tiny_model("llama", rope_theta=20_000.0)),
        fingerprint(tiny_model("mistral")),
    }
    assert len(others | {ours}) == 7


def test_answers_are_named_by_all_but_kernel_and_device(
    tiny_model: Tiny, model_cache: Path
) -> None:
    """Two machines of a cluster with different kernels go on with one journal, and so do two in bf16 of which
    one has a GPU. Torch's "meta" stands for it: a device that is no CPU, on every machine."""
    folder = tiny_model("llama")
    loaded = load_model(folder, cache_dir=model_cache, dtype="float32").decoder
    config, layers = loaded.config, loaded.layers
    ends = Ends(torch.zeros(1), layers[0].weights.input_norm, layers[0].weights.o, torch.zeros(1))

    def named(**other: Any) -> Decoder:
        plain = Identity("weights", "tokenizer", "float32", "none", "kernel")
        return Decoder(config, layers, ends, replace(plain, **other))

    ours, elsewhere = named(), named(kernel="another")
    assert ours.answers_digest(None) == elsewhere.answers_digest(None)
    assert ours.fingerprint != elsewhere.fingerprint
    others = [
        {"weights": "another"},
        {"tokenizer": "another"},
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
        {"quantization": "int4"},
    ]
    assert (
        len({one.answers_digest(None) for one in (ours, *(named(**each) for each in others))}) == 6
    )
    in_bf16 = Identity("weights", "tokenizer", "bfloat16", "none", "")
    on_cpu, on_gpu = (
        Decoder(config, layers, replace(ends, embedding=embedding), in_bf16)
        for embedding in (ends.embedding.bfloat16(), ends.embedding.to("meta", torch.bfloat16))
    )
    assert on_cpu.answers_digest(None) == on_gpu.answers_digest(None)
    assert on_cpu.fingerprint != on_gpu.fingerprint


def test_where_generation_ends_is_no_part_of_the_fingerprint(
    tiny_model: Tiny, model_cache: Path
) -> None:
    one, two = (
        load_model(tiny_model("llama", eos_token_id=eos), cache_dir=model_cache).decoder
        for eos in (256, [256, 257])
    )
    assert one.fingerprint == two.fingerprint
    assert two.config.eos_token_ids == (256, 257)


def test_kv_shape_counts_bytes(tiny_model: Tiny, model_cache: Path) -> None:
    decoder = load_model(tiny_model("llama"), cache_dir=model_cache, dtype="bfloat16").decoder
    # 2 layers, K and V, 2 heads of 16 values, 2 bytes each
    assert decoder.config.kv_shape("bfloat16").token_bytes == 2 * 2 * 2 * 16 * 2
