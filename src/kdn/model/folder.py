"""A decoder out of a Hugging Face model folder: config.json and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdn.core import Sampling
from kdn.errors import WeightsError
from kdn.model.config import ModelConfig, parse_config
from kdn.model.decoder import Decoder, DecoderLayer, Ends, Identity, LayerWeights, Quantization
from kdn.model.digest import DigestCache, digest_tensors
from kdn.model.grouped import GROUP, GroupedLinear, group_weights
from kdn.model.kernels import (
    KernelFloatLinear,
    KernelGroupedLinear,
    KernelLayers,
    KernelLinear,
    KernelNorm,
    Kernels,
)
from kdn.model.linear import Linear, build_linear
from kdn.model.norm import RmsNorm
from kdn.model.weights import Tensors, open_folder, read_json, weight_files

__all__ = ["FindKernels", "build_decoder", "no_kernels", "read_config", "read_sampling"]

_HEAD_BITS = 8
"""The head decides between tokens: its weights are kept in 8 bits where the layers' are in 4."""


FindKernels = Callable[[], Kernels | None]


def no_kernels() -> None:
    """There are none: torch computes alone."""


def read_config(folder: Path) -> ModelConfig:
    """The architecture that a model folder describes."""
    generation = folder / "generation_config.json"
    return parse_config(
        read_json(folder / "config.json"), read_json(generation) if generation.exists() else None
    )


def read_sampling(folder: Path) -> Sampling:
    """How the model's publisher has tokens drawn (generation_config.json); greedy where that is not
    said.  Values that no sampler takes are left out."""
    path = folder / "generation_config.json"
    said = read_json(path) if path.exists() else {}
    if said.get("do_sample") is not True:
        return Sampling()
    return Sampling(
        temperature=_within(said, "temperature", 0, 2, 1.0),
        top_p=_within(said, "top_p", 1e-6, 1, 1.0),
        top_k=int(_within(said, "top_k", 0, 1 << 30, 0)),
        min_p=_within(said, "min_p", 0, 1, 0.0),
    )


def _within(said: Mapping[str, Any], name: str, low: float, high: float, otherwise: float) -> float:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    return value if low <= value <= high else otherwise


def build_decoder(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
    tokenizer_digest: str,
    digests: DigestCache,
    find_kernels: FindKernels = no_kernels,
    known: Sequence[Decoder] = (),
) -> Decoder:
    """The folder's model in memory, ready to compute. Raises WeightsError for what it cannot be.

    Where one of the `known` has the same weights, they are in memory once.  Kernels are looked for, and
    perhaps compiled, after all names and shapes were checked.
    """
    config = read_config(folder)
    with open_folder(folder) as tensors:
        _Builder(config, tensors.without_values(), dtype, torch.device("meta")).check()
        kernel = find_kernels()
        identity = Identity(
            weights=_weights_digest(folder, tensors, digests),
            tokenizer=tokenizer_digest,
            dtype=str(dtype).removeprefix("torch."),
            quantization=quantization,
            kernel=kernel.name if kernel is not None else "",
        )
        for other in known:
            found = other.over_same_weights(config, identity, device)
            if found is not None:
                return found
        return _Builder(config, tensors, dtype, device, quantization, kernel).decoder(identity)


def _weights_digest(folder: Path, tensors: Tensors, digests: DigestCache) -> str:
    files = weight_files(folder)
    known = digests.get(files)
    if known is not None:
        return known
    digest = digest_tensors({name: tensors.get(name) for name in tensors.keys()})  # noqa: SIM118 not a dict
    digests.put(files, digest)
    return digest


class _Builder:
    """Reads tensors by their published names, checks shapes, fuses what is multiplied together."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization = "none",
        kernel: Kernels | None = None,
    ) -> None:
        self.config, self.tensors = config, tensors
        self.dtype, self.device = dtype, device
        self.quantization = quantization
        self.kernel = kernel

    def check(self) -> None:
        """Raise WeightsError for a tensor that is absent or of another shape."""
        self.ends()
        for i in range(self.config.num_layers):
            self.layer(f"model.layers.{i}")
        if f"model.layers.{self.config.num_layers}.input_layernorm.weight" in self.tensors:
            raise WeightsError(
                f"the weights have more layers than the {self.config.num_layers} of config.json, so they"
                " belong to different models; fetch the model again"
            )

    def decoder(self, identity: Identity) -> Decoder:
        config, ends = self.config, self.ends()
        layers = [
            DecoderLayer(i, config, self.layer(f"model.layers.{i}"))
            for i in range(config.num_layers)
        ]
        fused = KernelLayers.of(self.kernel, config, layers) if self.kernel is not None else None
        return Decoder(config, layers, ends, identity, fused)

    def ends(self) -> Ends:
        config = self.config
        table = (config.vocab_size, config.hidden_size)
        embedding = self.tensor("model.embed_tokens.weight", *table)
        head_rows = embedding if config.tied_head else self.tensor("lm_head.weight", *table)
        return Ends(
            embedding=embedding,
            final_norm=self.norm("model.norm.weight", config.hidden_size),
            head=self.build(head_rows, bits=_HEAD_BITS),
            head_rows=head_rows,
        )

    def layer(self, prefix: str) -> LayerWeights:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        sizes = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        return LayerWeights(
            input_norm=self.norm(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self.linear(attention, sizes, hidden, bias=config.qkv_bias),
            q_norm=self.head_norm(f"{attention}.q_norm.weight"),
            k_norm=self.head_norm(f"{attention}.k_norm.weight"),
            o=self.linear(attention, {"o_proj": hidden}, config.q_size, bias=config.o_bias),
            post_norm=self.norm(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self.linear(
                mlp, {"gate_proj": inner, "up_proj": inner}, hidden, bias=config.mlp_bias
            ),
            down=self.linear(mlp, {"down_proj": hidden}, inner, bias=config.mlp_bias),
        )

    def linear(self, prefix: str, sizes: dict[str, int], in_size: int, *, bias: bool) -> Linear:
        """One matrix out of several that share their input, in the order of `sizes`."""
        parts = [self.tensor(f"{prefix}.{n}.weight", out, in_size) for n, out in sizes.items()]
        biases = [self.tensor(f"{prefix}.{n}.bias", out) for n, out in sizes.items() if bias]
        fused = torch.cat(parts) if len(parts) > 1 else parts[0]
        paired = tuple(sizes) == ("gate_proj", "up_proj")
        return self.build(fused, torch.cat(biases) if biases else None, paired=paired)

    def build(
        self, weight: Tensor, bias: Tensor | None = None, *, paired: bool = False, bits: int = 4
    ) -> Linear:
        """A matrix of the compiled kind where that can be, else of torch's; `bits` if in groups."""
        kernel, int8 = self.kernel, self.quantization == "int8"
        is_wide_int8 = int8 and weight.dtype == torch.float32 and weight.device.type == "cpu"
        if (self.quantization == "int4" or is_wide_int8) and weight.shape[1] % GROUP == 0:
            groups = group_weights(weight, 8 if int8 else bits)
            if kernel is not None and KernelGroupedLinear.suits(kernel, weight, paired=paired):
                return KernelGroupedLinear(kernel, groups, bias, paired=paired)
            return GroupedLinear(groups, bias)
        if kernel is not None and KernelFloatLinear.suits(kernel, weight, paired=paired):
            return KernelFloatLinear(kernel, weight, bias, paired=paired)
        if kernel is not None and KernelLinear.suits(weight, paired=paired, int8=int8):
            return KernelLinear(kernel, weight, bias, paired=paired, int8=int8)
        return build_linear(weight, bias, int8=int8)

    def norm(self, name: str, size: int) -> RmsNorm:
        weight = self.tensor(name, size)
        if self.kernel is not None and KernelNorm.suits(self.kernel, weight):
            return KernelNorm(self.kernel, weight, self.config.rms_eps)
        return RmsNorm(weight, self.config.rms_eps)

    def head_norm(self, name: str) -> RmsNorm | None:
        return self.norm(name, self.config.head_dim) if self.config.qk_norm else None

    def tensor(self, name: str, *shape: int) -> Tensor:
        return self.tensors.get(name, shape).to(self.device, self.dtype)
