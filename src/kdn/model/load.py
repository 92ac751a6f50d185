"""A model ready to use, from a name or a path: the only way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from kdn.clock import Clock, SystemClock
from kdn.core import Sampling
from kdn.errors import BadConfig
from kdn.model.adapters import AdapterSet
from kdn.model.catalogue import name_of_model, resolve
from kdn.model.decoder import QUANTIZATIONS, Decoder, Fingerprints, Quantization
from kdn.model.digest import DigestCache
from kdn.model.folder import FindKernels, build_decoder, no_kernels, read_config, read_sampling
from kdn.model.gguf.file import unpack_gguf
from kdn.model.linear import has_onednn
from kdn.model.lora import load_adapter
from kdn.model.text.chat import ChatTemplate
from kdn.model.text.grammar import Grammars
from kdn.model.text.tokenizer import Tokenizer, load_tokenizer
from kdn.model.weights import weights_gate

__all__ = ["DTYPES", "LoadedModel", "load_model", "pick_device", "pick_dtype", "pick_quantization"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder with what belongs to it."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    chat: ChatTemplate
    adapters: AdapterSet = field(default_factory=AdapterSet)
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are drawn where a request says nothing."""

    @cached_property
    def grammars(self) -> Grammars:
        """Constraints on answers, compiled for the model's tokens."""
        return Grammars(self.tokenizer, self.decoder.config.vocab_size)

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """What names the model's KV, with each adapter."""
        return Fingerprints(self.decoder, self.adapters)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Give a name to the LoRA adapter in a PEFT folder, whatever it meant before.

        Requests that run go on with what they began with.  Raises WeightsError, BadInput.
        """
        decoder = self.decoder
        found = load_adapter(folder, name, decoder.config, decoder.dtype, decoder.device)
        self.adapters.load(name, found)

    def unload_adapter(self, name: str) -> None:
        """Take a name away; requests that run end with what they began with. Raises UnknownModel."""
        self.adapters.unload(name)


def load_model(
    name_or_path: str | Path,
    *,
    cache_dir: Path,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str = "none",
    adapters: Mapping[str, Path] | None = None,
    home: Path | None = None,
    clock: Clock | None = None,
    find_kernels: FindKernels = no_kernels,
    find_float_kernels: FindKernels = no_kernels,
    known: Sequence[LoadedModel] = (),
) -> LoadedModel:
    """The model that goes by a name, or lies at a path (a published folder or a GGUF file).

    `cache_dir` keeps unpacked GGUF files and digests between runs; `home` is where `kdn models get`
    puts models (default: `cache_dir`).  `quantization` keeps the matrices in 8 or 4 bits.  `find_kernels`
    (for fp32 `find_float_kernels`) is called once all files were looked at; what it finds computes what
    it can.  Weights that one of the `known` has too are in memory once.  Nothing is downloaded.  Raises
    UnknownModel, WeightsError, BadConfig.
    """
    source = resolve(name_or_path, home or cache_dir)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    finders = {torch.bfloat16: find_kernels, torch.float32: find_float_kernels}
    find = finders.get(kind, no_kernels) if place.type == "cpu" else no_kernels
    with weights_gate(source):
        folder = source if source.is_dir() else unpack_gguf(source, cache_dir / "unpacked", kind)
        config = read_config(folder)
        tokenizer, template = load_tokenizer(folder, config.eos_token_ids)
        loras = {
            one: load_adapter(path, one, config, kind, place)
            for one, path in (adapters or {}).items()
        }
        decoder = build_decoder(
            folder,
            dtype=kind,
            device=place,
            quantization=pick_quantization(quantization),
            tokenizer_digest=tokenizer.digest,
            digests=DigestCache(cache_dir / "digests"),
            find_kernels=find,
            known=[one.decoder for one in known],
        )
        chat = ChatTemplate(template, tokenizer, clock or SystemClock())
        sampling = read_sampling(folder)
    return LoadedModel(
        name=name_of_model(name_or_path),
        decoder=decoder,
        tokenizer=tokenizer,
        chat=chat,
        adapters=AdapterSet(loras),
        sampling=sampling,
    )


def pick_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises BadConfig for a device that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise BadConfig(f"device {device!r} is unknown; give auto, cpu or cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise BadConfig(f"kdn computes on cpu and cuda, not on {device!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BadConfig(f"device {device!r} is asked for, but torch sees no GPU; give cpu")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the processor has it, else float16 on a GPU, float32 on a CPU.

    Raises BadConfig for a name that is unknown, and for what the device cannot compute.
    """
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 no public name
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if has_bf16 else torch.float32
    if dtype not in DTYPES:
        raise BadConfig(f"dtype {dtype!r} is unknown; give auto or one of {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.type == "cpu" and has_onednn() and not has_bf16:
        raise BadConfig("bfloat16 is asked for, and this processor has none; give float32 or auto")
    if dtype == "float16" and device.type == "cpu":
        raise BadConfig("float16 is for GPUs; on a CPU give bfloat16 or float32")
    return DTYPES[dtype]


def pick_quantization(name: str) -> Quantization:
    """As what the matrices are kept. Raises BadConfig for a name that is unknown."""
    for one in QUANTIZATIONS:
        if one == name:
            return one
    raise BadConfig(f"quantization {name!r} is unknown; give one of {', '.join(QUANTIZATIONS)}")
