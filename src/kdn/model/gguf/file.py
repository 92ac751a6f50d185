"""A llama.cpp weight file (GGUF) turned, once, into the folder that everything else reads.

The folder holds config.json, model.safetensors, tokenizer.json and tokenizer_config.json.  It is
written beside its final place and renamed, so that two processes may do the same work and either
may be killed.  A folder that lacks a file is not used: something else took it.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kdn.errors import WeightsError
from kdn.machine.files import make_private, make_tree_private
from kdn.machine.scratch import locked_folder
from kdn.model.gguf.reader import GgufFile, StoredTensor, read_gguf
from kdn.model.gguf.tokenizer import tokenizer_files

__all__ = ["unpack_gguf"]

_FORMAT = "kdn-unpacked-4"
"""Changes when what is written changes, so that older folders are not used."""
_SOURCE = "unpacked-from.txt"
_ALWAYS = ("config.json", "model.safetensors", "tokenizer.json")
"""Files of every unpacked model, of earlier formats too."""
_LEFTOVERS = ".*.*"
"""Hidden folders: half-made ones, and those on their way out, of every file and every version."""

_ENDS = ("eos", "eot", "eom")
"""End of text, of a turn and of a message: each ends an answer, as in llama.cpp."""

_FAMILY = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "mistral"}
_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpack_gguf(file: Path, cache_dir: Path, dtype: torch.dtype) -> Path:
    """The folder that holds `file`'s model with its weights in `dtype`, made now if need be.

    The folder is found by the file's path, size and time, so that a second call reads nothing.  What
    the last file of that path was unpacked to is removed, and so is what was left half-made or half-empty.
    A tokenizer.json beside the file is preferred to the one inside.
    Raises WeightsError when the file is torn, holds a model that kdn cannot run, or when the folder
    cannot be written.
    """
    folder = cache_dir / f"{file.stem}-{_state(file, dtype)}"
    beside = [part.name for part in _tokenizer_beside(file)] or ["tokenizer_config.json"]
    was_there = folder.is_dir()
    if _is_whole(folder, (*_ALWAYS, *beside, _SOURCE)):
        return folder
    with ExitStack() as stack:
        try:
            make_private(cache_dir)
            if was_there:  # and not since: another process may have made it
                _remove([folder], cache_dir)
            building = stack.enter_context(
                locked_folder(cache_dir, f".{folder.name}.part-", _LEFTOVERS)
            )
        except OSError as error:
            raise WeightsError(
                f"{file} must be unpacked, and {cache_dir} cannot be written ({error.strerror}); set "
                "KDN_HOME, or the cache folder, to one that you may write"
            ) from error
        try:
            _write(file, building, dtype)
            (building / _SOURCE).write_text(_source(file, dtype), "utf-8")
            _publish(building, folder)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{file} cannot be unpacked under {cache_dir} ({error}); free some space there, or set "
                "another cache folder"
            ) from error
    with suppress(OSError):  # the file went meanwhile
        if folder.name.endswith(_state(file, dtype)):  # it was not replaced
            _remove_others(folder, _source(file, dtype))
    return folder


def _remove_others(folder: Path, source: str) -> None:
    """What earlier files of the same path were unpacked to, and what is half-empty."""
    found = []
    for other in folder.parent.glob(f"{glob.escape(folder.name.rpartition('-')[0])}-*"):
        with suppress(OSError):  # it says nothing of a source, or another process removes it
            if other != folder and (
                not _is_whole(other, _ALWAYS) or (other / _SOURCE).read_text("utf-8") == source
            ):
                found.append(other)
    _remove(found, folder.parent)


def _is_whole(folder: Path, names: Sequence[str]) -> bool:
    """Is there something in each of these files? A power cut may leave names without contents."""
    try:
        return all((folder / name).stat().st_size for name in names)
    except OSError:
        return False


def _remove(folders: Sequence[Path], cache_dir: Path) -> None:
    """Moved away first, as removing may be cut short. Raises OSError where nothing can be moved."""
    with locked_folder(cache_dir, ".unpacked.gone-") as gone:
        for folder in folders:
            with suppress(OSError):  # another process removes it
                folder.rename(gone / folder.name)


def _source(file: Path, dtype: torch.dtype) -> str:
    return f"{file.resolve()}\n{dtype}\n"


def _publish(building: Path, folder: Path) -> None:
    try:
        make_tree_private(building)
        building.rename(folder)
    except OSError:
        # Another process was quicker: its folder holds the same.
        if not _is_whole(folder, _ALWAYS):
            raise


def _state(file: Path, dtype: torch.dtype) -> str:
    told = [_FORMAT, str(dtype)]
    for part in (file, *_tokenizer_beside(file)):
        about = part.stat()
        told.append(f"{part.resolve()}:{about.st_size}:{about.st_mtime_ns}")
    return xxhash.xxh3_64_hexdigest(";".join(told).encode())


def _tokenizer_beside(file: Path) -> list[Path]:
    """Published tokenizer files in the GGUF file's folder, for kinds that GGUF cannot express."""
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    found = [file.parent / name for name in names if (file.parent / name).is_file()]
    return found if file.parent / "tokenizer.json" in found else []


def _write(file: Path, folder: Path, dtype: torch.dtype) -> None:
    stored = read_gguf(file)
    fields = _Fields(file, stored.metadata)
    _check_ends(file, fields, stored.tensors)
    try:
        config = _config(fields, stored.tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{file} does not describe its model in a way that kdn reads ({error!r}); fetch it "
            "again, or take the published folder"
        ) from error
    save_file(_tensors(file, stored, config, dtype), folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    beside = _tokenizer_beside(file)
    for part in beside:
        shutil.copyfile(part, folder / part.name)
    if not beside:
        for name, content in tokenizer_files(fields.get).items():
            _write_json(folder / name, content)


def _check_ends(file: Path, fields: _Fields, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises WeightsError when a token that begins or ends text is none of the vocabulary."""
    table = tensors.get("token_embd.weight")
    for name in ("bos", *_ENDS):
        token_id = fields.get(f"tokenizer.ggml.{name}_token_id")
        known = isinstance(token_id, int) and (table is None or 0 <= token_id < table.shape[0])
        if token_id is not None and not known:
            raise WeightsError(
                f"{file} is damaged: its {name} token is {str(token_id)[:40]}, which the vocabulary does not "
                "have; fetch it again"
            )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


class _Fields:
    """The file's metadata by name."""

    def __init__(self, file: Path, fields: Mapping[str, Any]) -> None:
        self._file, self._fields = file, fields
        self.architecture = str(self.get("general.architecture", "missing"))

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def ends(self) -> list[int]:
        """Ids of the tokens that end an answer."""
        found = (self.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS)
        return [int(token_id) for token_id in found if token_id is not None]

    def own(self, name: str, default: Any = None) -> Any:
        """A value under the architecture's own prefix."""
        return self.get(f"{self.architecture}.{name}", default)

    def need(self, name: str) -> Any:
        found = self.own(name)
        if found is None:
            raise WeightsError(f"{self._file} lacks {self.architecture}.{name}; fetch it again")
        return found


def _config(fields: _Fields, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """A config.json in the published form, from the file's metadata and tensor names."""
    if fields.architecture not in _FAMILY:
        raise WeightsError(
            f"the GGUF file's model is of type {fields.architecture!r}; kdn computes "
            f"{', '.join(_FAMILY)}: choose such a model"
        )
    family = _FAMILY[fields.architecture]
    num_heads, hidden = (
        int(fields.need("attention.head_count")),
        int(fields.need("embedding_length")),
    )
    config = {
        "model_type": family,
        "hidden_act": "silu",
        "num_hidden_layers": int(fields.need("block_count")),
        "hidden_size": hidden,
        "intermediate_size": int(fields.need("feed_forward_length")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(fields.own("attention.head_count_kv", num_heads)),
        "head_dim": int(fields.own("attention.key_length", hidden // num_heads)),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": int(fields.own("context_length", 4096)),
        # Stored as fp32: written out again in the few digits it was published with.
        "rms_norm_eps": float(f"{fields.need('attention.layer_norm_rms_epsilon'):.6g}"),
        "attention_bias": family != "qwen2" and "blk.0.attn_q.bias" in tensors,
        "sliding_window": fields.own("attention.sliding_window"),
        "use_sliding_window": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "eos_token_id": list(dict.fromkeys(fields.ends())) or None,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "rope_theta": float(fields.own("rope.freq_base", 10_000.0)),
    }
    return config | _rope_scaling(fields, tensors)


def _rope_scaling(fields: _Fields, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    if "rope_freqs.weight" in tensors:
        # The converter stores the finished llama3 factors, not the numbers they came from; those
        # that Llama 3.1 and 3.2 were published with are told apart by the largest factor.
        scale = {
            "rope_type": "llama3",
            "factor": float(tensors["rope_freqs.weight"].values().max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        return {"rope_scaling": scale}
    kind = fields.own("rope.scaling.type", "none")
    if kind == "none":
        return {}
    scale = {"rope_type": kind, "factor": float(fields.own("rope.scaling.factor", 1.0))}
    original = fields.own("rope.scaling.original_context_length")
    if original is not None:
        scale["original_max_position_embeddings"] = int(original)
    return {"rope_scaling": scale}


def _tensors(
    file: Path, whole: GgufFile, config: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for stored in whole.tensors.values():
        name = _published_name(stored.name, int(config["num_hidden_layers"]))
        if name is None:
            continue
        tensor = _dequantise(file, stored)
        part = stored.name.split(".")[2] if stored.name.startswith("blk.") else ""
        if config["model_type"] in ("llama", "mistral") and part in heads:
            tensor = _unpermute(tensor, heads[part])
        found[name] = tensor.to(dtype)
    return found


def _published_name(name: str, num_layers: int) -> str | None:
    """llama.cpp's name -> the published one; None for what is not a weight."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    if name == "rope_freqs.weight":
        return None
    parts = name.split(".")
    is_layer = len(parts) == 4 and parts[0] == "blk" and parts[1] in map(str, range(num_layers))
    if is_layer and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    raise WeightsError(f"the GGUF file holds a tensor {name[:80]!r} that kdn has no place for")


def _dequantise(file: Path, stored: StoredTensor) -> Tensor:
    try:
        return torch.from_numpy(stored.values())
    except (NotImplementedError, ValueError) as error:
        raise WeightsError(
            f"{file}: {stored.name} is of type {stored.kind.name}, which cannot be read ({error}); "
            "take a Q4_1, Q8_0 or F16 file"
        ) from error


def _unpermute(tensor: Tensor, num_heads: int) -> Tensor:
    """llama.cpp interleaves the two rotary halves of q and k rows; published weights do not."""
    pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()
