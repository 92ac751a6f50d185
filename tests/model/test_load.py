"""Folders as published, sharded or torn: loaded, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdn.errors import BadConfig, WeightsError
from kdn.model import Decoder, load_model, pick_device, pick_dtype
from kdn.model.digest import DigestCache, digest_tensors
from kdn.model.folder import no_kernels
from kdn.model.kernels import KernelGroupedLinear, Kernels
from kdn.model.load import pick_quantization
from tests.model.reference import forward

Tiny = Callable[..., Path]
TOKENS = (1, 2, 3, 4, 5)


def test_shards_are_one_model(tiny_model: Tiny, model_cache: Path) -> None:
    whole, parts = tiny_model("llama"), tiny_model("llama")
    tensors = load_file(parts / "model.safetensors")
    (parts / "model.safetensors").unlink()
    names = sorted(tensors)
    index: dict[str, str] = {}
    for i, chosen in enumerate((names[:5], names[5:])):
        save_file({name: tensors[name] for name in chosen}, parts / f"part-{i}.safetensors")
        index |= dict.fromkeys(chosen, f"part-{i}.safetensors")
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    one, two = (load_model(f, cache_dir=model_cache, dtype="float32") for f in (whole, parts))
    assert torch.equal(forward(one.decoder, TOKENS), forward(two.decoder, TOKENS))
    assert one.decoder.fingerprint == two.decoder.fingerprint
    (parts / "part-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"part-1\.safetensors"):
        load_model(parts, cache_dir=model_cache)


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_missing_tensor_is_named(tiny_model: Tiny, model_cache: Path) -> None:
    folder = spoil(tiny_model("llama"), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj"):
        load_model(folder, cache_dir=model_cache)


def test_a_wrong_shape_is_named(tiny_model: Tiny, model_cache: Path) -> None:
    folder = spoil(tiny_model("llama"), lambda t: t.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has shape \(63,\)"):
        load_model(folder, cache_dir=model_cache)


def test_weights_of_more_layers_are_not_cut_in_silence(tiny_model: Tiny, model_cache: Path) -> None:
    folder = tiny_model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(WeightsError, match=r"more layers than the 1 of config\.json"):
        load_model(folder, cache_dir=model_cache)


def test_torn_weights_are_refused(tiny_model: Tiny, model_cache: Path) -> None:
    folder = tiny_model("llama")
    file = folder / "model.safetensors"
    for size in (0, 5, 1000, file.stat().st_size - 10):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            load_model(folder, cache_dir=model_cache)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path, model_cache: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"has no config\.json; a model folder holds config"
    ) as told:
        load_model(tmp_path, cache_dir=model_cache)
    assert "Errno" not in str(told.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, tiny_model: Tiny, model_cache: Path) -> None:
    folder = tiny_model("llama")
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_model(folder, cache_dir=model_cache)


def test_half_a_config_is_refused(tiny_model: Tiny, model_cache: Path) -> None:
    folder = tiny_model("llama")
    (folder / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_model(folder, cache_dir=model_cache)


@pytest.mark.parametrize(("kind", "cosine", "share"), [("int8", 0.995, 3), ("int4", 0.95, 5)])
def test_quantized_weights_stay_close(
    kind: str, cosine: float, share: float, tiny_model: Tiny, model_cache: Path
) -> None:
    folder = tiny_model("qwen2")
    exact, small = (
        load_model(folder, cache_dir=model_cache, dtype="float32", quantization=one).decoder
        for one in ("none", kind)
    )
    a, b = forward(exact, TOKENS), forward(small, TOKENS)
    assert torch.nn.functional.cosine_similarity(a, b, dim=1).min() > cosine
    assert small.weight_bytes < exact.weight_bytes / share


@pytest.mark.model
def test_quantized_smollm2_says_nearly_the_same(
    smollm2: Path, model_cache: Path, kernels: Kernels
) -> None:
    """Mean KL to the fp32 model over a sentence, beside that of plain bf16."""
    exact, plain, eight, four = (
        load_model(
            smollm2,
            cache_dir=model_cache,
            dtype=dtype,
            quantization=kind,
            find_kernels=lambda: kernels,
        )
        for dtype, kind in (
            ("float32", "none"),
            ("bfloat16", "none"),
            ("bfloat16", "int8"),
            ("bfloat16", "int4"),
        )
    )
    tokens = exact.tokenizer.encode("The capital of France is Paris, and that of Italy is Rome.")
    wanted = forward(exact.decoder, tokens).log_softmax(-1)

    def divergence(decoder: Decoder) -> float:
        found = forward(decoder, tokens).log_softmax(-1)
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    assert divergence(plain.decoder) < 0.005
    assert divergence(eight.decoder) < 0.02
    assert divergence(four.decoder) < 0.02, "the packaged model is four bits wide already"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_fp32_weights_are_multiplied_by_compiled_code(
    kind: str, tiny_model: Tiny, model_cache: Path, floats: Kernels
) -> None:
    """The same weights by torch alone give the same logits, but for rounding; KV of the two is apart."""
    folder = tiny_model("qwen2")
    compiled, twin = (
        load_model(
            folder,
            cache_dir=model_cache,
            dtype="float32",
            quantization=kind,
            find_float_kernels=find,
        ).decoder
        for find in (lambda: floats, no_kernels)
    )
    assert isinstance(compiled.layers[0].weights.down, KernelGroupedLinear)
    assert compiled.fingerprint != twin.fingerprint
    a, b = forward(compiled, TOKENS), forward(twin, TOKENS)
    assert torch.nn.functional.cosine_similarity(a, b, dim=1).min() > (
        0.9999 if kind == "int4" else 0.995
    )


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(BadConfig, match="'int5' is unknown; give one of none, int8, int4"):
        pick_quantization("int5")
    cpu = torch.device("cpu")
    for dtype in ("float16", "int4"):
        with pytest.raises(BadConfig, match=dtype):
            pick_dtype(dtype, cpu)
    for device in ("tpu", "meta"):
        with pytest.raises(BadConfig, match=device):
            pick_device(device)
    if not torch.cuda.is_available():
        with pytest.raises(BadConfig, match="no GPU"):
            pick_device("cuda")


def test_a_digest_is_noted_until_the_file_changes(tmp_path: Path) -> None:
    file, notes = tmp_path / "weights", DigestCache(tmp_path / "notes")
    file.write_bytes(b"one")
    assert notes.get([file]) is None
    notes.put([file], "abc")
    assert notes.get([file]) == "abc"
    file.write_bytes(b"three")
    assert notes.get([file]) is None


def test_a_digest_sees_bytes_names_and_shapes() -> None:
    base = {"a": torch.zeros(4)}
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.ones(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
    ]
    assert len({digest_tensors(t) for t in (base, *others)}) == 5
    assert digest_tensors(base, extra="x") != digest_tensors(base)


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(tiny_model: Tiny, model_cache: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    folder = tiny_model("qwen3")
    here = load_model(folder, cache_dir=model_cache, dtype="float32", device="cpu").decoder
    there = load_model(folder, cache_dir=model_cache, dtype="float32", device="cuda").decoder
    hidden = torch.randn(5, 64)
    for ours, theirs in zip(
        here.layers[0].qkv(hidden), there.layers[0].qkv(hidden.cuda()), strict=True
    ):
        assert torch.allclose(ours, theirs.cpu(), atol=1e-3)
