"""What is read from vLLM's configuration: is it one that kdn can serve, and whose KV is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, RSWASpec

from kdn.core import KvShape
from kdn.errors import BadConfig, BadInput
from kdn.scale.identity import EngineIdentity, digest_config, digest_weights, rope_factors
from kdn.scale.paged import RUN_LAYOUT, PagedShape, Scatter
from kdn.scale.settings import ConnectorSettings
from kdn.scale.vllm.version import installed_version

__all__ = [
    "check_engine",
    "handed_shape",
    "identify",
    "packing",
    "paged_shape",
    "scatter",
]


def check_engine(vllm_config: Any, kv_cache_config: Any, settings: ConnectorSettings) -> None:
    """Raises BadConfig or BadInput for what would fail requests later, or answer them wrongly."""
    if vllm_config.kv_transfer_config.kv_load_failure_policy != "recompute":
        raise BadConfig(
            "kv_load_failure_policy is 'fail', with which a lost block fails its request; set it to"
            " 'recompute' in --kv-transfer-config (in a MultiConnector, in this connector's own part)"
        )
    if vllm_config.load_config.load_format == "dummy":
        raise BadConfig(
            "--load-format dummy gives the model random weights, whose KV would be stored under the name"
            " of those in its files: run it without the connector, or load the files"
        )
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise BadInput(
            f"the model has {len(groups)} kinds of KV cache; kdn's connector stores those with one:"
            " run it with --disable-hybrid-kv-cache-manager or without the connector"
        )
    _check_kind(groups[0].kv_cache_spec)
    parallel = vllm_config.parallel_config
    if parallel.world_size > 1 and not settings.is_shared:
        raise BadConfig(
            f"{parallel.world_size} workers cannot share a store in memory; name a folder or a far"
            " tier in kv_connector_extra_config"
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise BadConfig("kdn's connector does not know context parallelism; set its sizes to 1")


def _check_kind(spec: Any) -> None:
    """Raises BadInput where a prompt's KV is not kept whole, or depends on what follows it.

    vLLM has one null block in place of all that it gave up: stored, it would pass for their KV.
    """
    if not isinstance(spec, FullAttentionSpec) or isinstance(spec, RSWASpec):
        raise BadInput(
            f"kdn's connector stores prompts whole and does not know this model's KV cache"
            f" ({type(spec).__name__}): where that is a sliding window, run it with --disable-sliding-window"
            " (prompts then end at the window), else without the connector"
        )
    if spec.non_causal:
        raise BadInput(
            "the KV of this model's tokens depends on later ones, so that no beginning of a prompt can be"
            " reused: run it without the connector"
        )


def identify(vllm_config: Any, spec: Any) -> EngineIdentity:
    """What the KV of this engine depends on. Raises WeightsError without weight files."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    backend, config = vllm_config.attention_config.backend, model.hf_config.to_dict()
    folder = model_folder(model.model, model.revision, vllm_config.load_config.download_dir)
    return EngineIdentity(
        engine=f"vllm-{installed_version()}",
        weights=digest_weights(folder),
        config=digest_config(config),
        dtype=str(model.dtype),
        kv_dtype=str(vllm_config.cache_config.cache_dtype),
        quantization=str(model.quantization),
        device=current_platform.device_type,
        attention="auto" if backend is None else backend.name,
        layout=f"{RUN_LAYOUT}{packing(spec)}",
        tensor_ranks=parallel.tensor_parallel_size,
        pipeline_ranks=parallel.pipeline_parallel_size,
        rope=rope_factors(config, model.max_model_len),
    )


def model_folder(name: str, revision: str | None, download_dir: str | None) -> Path:
    """Where the weights of a folder, a file or a hub id lie on this machine.

    `download_dir` is where vLLM keeps the hub's files; None is the hub's own cache.
    """
    if Path(name).exists():
        return Path(name)
    return Path(
        snapshot_download(name, revision=revision, cache_dir=download_dir, local_files_only=True)
    )


def paged_shape(spec: Any, num_blocks: int) -> PagedShape:
    """Blocks, heads and dims of a layer's cache; a latent that all heads share counts as one head."""
    if isinstance(spec, MLAAttentionSpec):
        return PagedShape(num_blocks, spec.block_size, 1, spec.head_size // 2)
    return PagedShape(num_blocks, spec.block_size, spec.num_kv_heads, spec.head_size)


def handed_shape(spec: Any, kv_cache_config: Any) -> KvShape:
    """What the KV of a token looks like here, before the tensors are there."""
    (group,) = kv_cache_config.kv_cache_groups
    one = paged_shape(spec, kv_cache_config.num_blocks)
    dtype = str(spec.dtype).removeprefix("torch.")
    return KvShape(len(group.layer_names), one.num_kv_heads, one.head_dim, dtype)


def packing(spec: Any) -> str:
    """How this machine's kernels pack a block, where they do: on a CPU by its instructions.

    Two machines that share a store may differ in it, and would read one another's blocks as noise.
    """
    isa = _cpu_isa(spec)
    return "" if isa is None else f";{isa}:{spec.block_size}"


def scatter(spec: Any) -> Scatter | None:
    """vLLM's own way to write tokens into a packed cache; None where the cache is plain."""
    isa = _cpu_isa(spec)
    if isa is None:
        return None
    from vllm import _custom_ops

    def write(tensor: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
        blocks, heads, tokens, _ = tensor.shape
        # the halves of a block's memory, not of its rows, as vLLM's attention has it
        keys, values = tensor.view(blocks, heads, 2 * tokens, -1).chunk(2, dim=2)
        _custom_ops.cpu_attn_reshape_and_cache(
            k.contiguous(), v.contiguous(), keys, values, slots, isa
        )

    return write


def _cpu_isa(spec: Any) -> str | None:
    if current_platform.device_type != "cpu":
        return None
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    return str(_get_attn_isa(spec.dtype, spec.block_size, spec.head_size))
