"""GGUF files become folders once: the same logits, and nothing half-made is ever used."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdn.errors import WeightsError
from kdn.model import load_model
from kdn.model.gguf.file import unpack_gguf
from kdn.model.gguf.tokenizer import tokenizer_files
from tests.model.reference import forward

Tiny = Callable[..., Path]
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def llama_cpp_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def permute(tensor: Tensor, heads: int) -> Tensor:
    """How llama.cpp's converter stores the q and k rows of Llama models."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(
    folder: Path,
    path: Path,
    *,
    leave_out: str = "nothing",
    tokenizer: str = "gpt2",
    ends: Mapping[str, int] | None = None,
) -> Path:
    """The tiny model of `folder` as llama.cpp's converter would write it, in fp32."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
    _add_tokenizer(writer, folder, tokenizer)
    for name, token_id in (ends or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored = tensor
        if family == "llama" and name.endswith("q_proj.weight"):
            stored = permute(tensor, config["num_attention_heads"])
        if family == "llama" and name.endswith("k_proj.weight"):
            stored = permute(tensor, config["num_key_value_heads"])
        if leave_out not in name:
            writer.add_tensor(llama_cpp_name(name), np.ascontiguousarray(stored.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, kind: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = [*tokenizer["model"]["vocab"], "<|end|>", "<|turn|>"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3])
    writer.add_eos_token_id(256)
    writer.add_chat_template("{{ messages[0].content }}")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_computes_like_the_folder(
    family: str, tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    folder = tiny_model(family)
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    published = load_model(folder, cache_dir=model_cache, dtype="float32")
    ours = load_model(file, cache_dir=tmp_path, dtype="float32")
    tokens = published.tokenizer.encode("a gguf file")
    assert torch.equal(forward(ours.decoder, tokens), forward(published.decoder, tokens))
    assert ours.tokenizer.encode("a<|end|>", special=True) == (97, 256)
    assert ours.decoder.config.eos_token_ids == (256,)
    assert ours.name == "tiny"


def test_a_torn_file_is_refused_and_leaves_nothing(tiny_model: Tiny, tmp_path: Path) -> None:
    whole = write_gguf(tiny_model("llama"), tmp_path / "whole.gguf").read_bytes()
    cache = tmp_path / "cache"
    for size in (0, 3, 20, 1000, len(whole) // 2, len(whole) - 5000):
        file = tmp_path / "torn.gguf"
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"torn\.gguf"):
            load_model(file, cache_dir=cache)
    assert list((cache / "unpacked").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_not_called_a_damaged_file(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    (tmp_path / "cache").touch()
    with pytest.raises(WeightsError, match=r"cache/unpacked cannot be written .*set KDN_HOME"):
        load_model(file, cache_dir=tmp_path / "cache", dtype="float32")


def test_garbage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "noise.gguf"
    file.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(WeightsError, match="cannot be read as GGUF"):
        load_model(file, cache_dir=tmp_path)


def test_another_architecture_is_refused(tiny_model: Tiny, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "gpt.gguf", "gptneox")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="gptneox"):
        load_model(tmp_path / "gpt.gguf", cache_dir=tmp_path)


def test_a_missing_tensor_is_named(tiny_model: Tiny, tmp_path: Path) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf", leave_out="layers.1.mlp.up_proj")
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(file, cache_dir=tmp_path)


def test_a_missing_embedding_is_named(tiny_model: Tiny, tmp_path: Path) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf", leave_out="embed_tokens")
    with pytest.raises(WeightsError, match=r"token_embd\.weight"):
        load_model(file, cache_dir=tmp_path)


def test_the_second_load_unpacks_nothing(tiny_model: Tiny, tmp_path: Path) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf")
    first = unpack_gguf(file, tmp_path / "cache", torch.float32)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert unpack_gguf(file, tmp_path / "cache", torch.float32) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert unpack_gguf(file, tmp_path / "cache", torch.bfloat16) != first


@pytest.mark.parametrize(
    ("pre", "said", "adds"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)
def test_llama_3_begins_with_bos_where_the_file_does_not_say(
    pre: str, said: bool | None, adds: bool
) -> None:
    """So llama.cpp takes it, too."""
    told = {"model": "gpt2", "pre": pre, "tokens": ["a", "<s>"], "bos_token_id": 1}
    told |= {} if said is None else {"add_bos_token": said}
    fields = {f"tokenizer.ggml.{name}": value for name, value in told.items()}
    assert tokenizer_files(fields.get)["tokenizer_config.json"]["add_bos_token"] is adds


def test_what_an_earlier_file_was_unpacked_to_goes(tiny_model: Tiny, tmp_path: Path) -> None:
    file, cache = write_gguf(tiny_model("llama"), tmp_path / "a.gguf"), tmp_path / "cache"
    (tmp_path / "b").mkdir()
    other = write_gguf(tiny_model("llama"), tmp_path / "b" / "a.gguf")
    others = [unpack_gguf(file, cache, torch.bfloat16), unpack_gguf(other, cache, torch.float32)]
    earlier = unpack_gguf(file, cache, torch.float32)
    before = cache / "a-0123456789abcdef"
    shutil.copytree(others[0], before)
    (before / "unpacked-from.txt").unlink()  # an older one, which does not say where it comes from
    (cache / ".a.gone-killed" / "a-1123456789abcdef").mkdir(parents=True)
    os.utime(file, (1, 1))
    emptied: list[Path] = []

    def watch(event: str, told: tuple[object, ...]) -> None:
        if event == "shutil.rmtree" and cache in (path := Path(str(told[0]))).parents:
            emptied.append(path)

    sys.addaudithook(watch)
    later = unpack_gguf(file, cache, torch.float32)
    assert earlier != later
    assert set(cache.iterdir()) == {*others, before, later}
    assert emptied
    assert all(path.name.startswith(".") for path in emptied), (
        "none under a name that is looked for"
    )


def test_two_at_once_agree_on_one_folder(tiny_model: Tiny, tmp_path: Path) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf")
    found: list[Path] = []
    workers = [
        threading.Thread(
            target=lambda: found.append(unpack_gguf(file, tmp_path / "cache", torch.float32))
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert list((tmp_path / "cache").iterdir()) == [found[0]]


def test_what_a_killed_process_left_goes_with_the_next_unpacking(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf")
    folder = unpack_gguf(file, tmp_path / "cache", torch.float32)
    left = tmp_path / "cache" / f".{folder.name}.part-killed"
    left.mkdir()
    folder.rename(tmp_path / "elsewhere")
    unpack_gguf(file, tmp_path / "cache", torch.float32)
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_what_other_versions_and_other_files_left_half_made_goes(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    """Of a file that was replaced, of a file that is gone, and of a version that locked nothing."""
    file, cache = write_gguf(tiny_model("llama"), tmp_path / "a.gguf"), tmp_path / "cache"
    halves = (
        ".a-0123456789abcdef.part-killed",
        ".b-0123456789abcdef.part-killed",
        ".a-0123456789abcdef.x7h2_9qk",
        ".b.gone-killed",
        "a-0123456789abcdef",
    )
    for name in halves:
        (cache / name).mkdir(parents=True)
        (cache / name / "model.safetensors").write_bytes(b"half")
    folder = unpack_gguf(file, cache, torch.float32)
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "model.safetensors"])
def test_a_folder_that_lost_a_file_is_made_again(
    name: str, tiny_model: Tiny, tmp_path: Path
) -> None:
    """Versions that emptied a folder under its name left such ones; so does what tidies caches up."""
    file, cache = write_gguf(tiny_model("llama"), tmp_path / "a.gguf"), tmp_path / "cache"
    whole = unpack_gguf(file, cache, torch.float32)
    was = (whole / name).read_bytes()
    (whole / name).unlink()
    assert unpack_gguf(file, cache, torch.float32) == whole
    assert (whole / name).read_bytes() == was
    (whole / name).write_bytes(b"")  # as a power cut leaves what was not written yet
    unpack_gguf(file, cache, torch.float32)
    assert (whole / name).read_bytes() == was
    assert list(cache.iterdir()) == [whole]


def test_a_tokenizer_beside_the_file_is_used(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = tiny_model("llama")
    file = write_gguf(folder, tmp_path / "a.gguf", tokenizer="unigram")
    with pytest.raises(WeightsError, match="beside the file"):
        load_model(file, cache_dir=tmp_path / "cache")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    loaded = load_model(file, cache_dir=tmp_path / "cache")
    assert loaded.tokenizer.encode("a<|end|>", special=True) == (97, 256)


@pytest.mark.model
def test_smollm2_is_described_as_published(smollm2: Path, model_cache: Path) -> None:
    config = load_model(smollm2, cache_dir=model_cache, dtype="float32").decoder.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (30, 9, 3)
    assert (config.head_dim, config.vocab_size, config.max_position) == (64, 49152, 8192)
    assert config.rope.theta == 100_000.0
    assert config.rms_eps == 1e-5
    assert config.tied_head
    assert config.kv_shape("bfloat16").token_bytes == 23_040


def test_a_turns_end_and_a_messages_end_stop_an_answer_too(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    """llama.cpp's converter names the end of text, of a turn and of a message apart."""
    folder = tiny_model("llama")
    file = write_gguf(folder, tmp_path / "a.gguf", ends={"eot": 257, "eom": 12})
    loaded = load_model(file, cache_dir=tmp_path / "cache")
    assert loaded.tokenizer.eos_ids == (256, 257, 12)
    assert loaded.decoder.config.eos_token_ids == (256, 257, 12)


@pytest.mark.parametrize("ends", [{"eot": 999}, {"bos": 4_294_967_295}])
def test_an_end_beyond_the_vocabulary_is_damage(
    ends: dict[str, int], tiny_model: Tiny, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model("llama"), tmp_path / "a.gguf", ends=ends)
    with pytest.raises(WeightsError, match=r"damaged.*fetch it again"):
        load_model(file, cache_dir=tmp_path)
