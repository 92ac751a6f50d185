"""One decoder for Llama, Mistral, Qwen2 and Qwen3: position-wise work, a layer at a time.

Attention is not here: the caller takes q, k and v from a layer, attends as its plan says, and
hands the attended rows back.  Every tensor is [rows, ...]; which sequence a row belongs to is the
caller's business.  No state is held between calls, and no weight asks for a gradient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kdn.core import Fingerprint, Invoked, Request
from kdn.model.adapters import AdapterSet
from kdn.model.attention import BoundAttention
from kdn.model.config import ModelConfig
from kdn.model.linear import Linear, silu_product
from kdn.model.lora import AdapterRun, LoraAdapter, deltas
from kdn.model.norm import RmsNorm
from kdn.model.rope import Rope

__all__ = [
    "NUMERICS",
    "NUMERICS_OF_BF16",
    "QUANTIZATIONS",
    "Decoder",
    "DecoderLayer",
    "Ends",
    "Fingerprints",
    "FusedLayers",
    "Identity",
    "KvNote",
    "LayerWeights",
    "Quantization",
]

Quantization = Literal["none", "int8", "int4"]
"""As what the matrices are kept: as stored, 8 bits with a scale an output, or 4 bits in groups of 32."""
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

NUMERICS, NUMERICS_OF_BF16 = "kdn-numerics-1", "kdn-numerics-2"
"""Change whenever the same weights would give other bits, so that old blocks are not found; the second
is that of bf16 on a CPU."""


@dataclass(frozen=True)
class LayerWeights:
    """What one layer multiplies by: fused qkv [q+2kv, H] and gate-up [2I, H], norms [H]."""

    input_norm: RmsNorm
    qkv: Linear
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    o: Linear
    post_norm: RmsNorm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class KvNote:
    """Where K before rotation and V of a sequence's rows are noted."""

    to: Tensor
    """[layers, 2, columns, kv heads, dim]"""
    column: int
    """The first row's."""
    num_rows: int
    """So many are noted, from the first one on."""


class FusedLayers(Protocol):
    """Several layers in one call, with the bits of one layer after the other."""

    row_bytes: float
    """What a row takes beside its hidden state while they run."""

    def run(
        self,
        hidden: Tensor,
        bound: BoundAttention,
        notes: Sequence[KvNote | None],
        first: int,
        stop: int,
    ) -> Tensor | None:
        """Of layers [first, stop): the first one's input [n, H], which is overwritten -> the last one's
        output.

        `notes` are by bound slice.  None where it cannot run over what was bound.
        """


class DecoderLayer:
    """One layer, cut at attention."""

    def __init__(self, index: int, config: ModelConfig, weights: LayerWeights) -> None:
        self.index = index
        self.window = config.sliding_window[index]
        self._config = config
        self.weights = weights
        self._cuts = (config.q_size, config.q_size + config.kv_size)
        linears = (weights.qkv, weights.o, weights.gate_up, weights.down)
        self.weight_bytes = sum(linear.weight_bytes for linear in linears)

    def qkv(
        self, hidden: Tensor, adapters: Sequence[AdapterRun] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden[n, H] -> q[n, Hq, D], k[n, Hkv, D], v[n, Hkv, D].

        The input norm is applied inside.  q and k are past their norms where the family has them,
        and carry no rotary position.  The three may be views of one tensor.
        """
        weights = self.weights
        x = weights.input_norm(hidden)
        fused = weights.qkv(x)
        if adapters:
            k_at, v_at = self._cuts
            parts = (fused[:, :k_at], fused[:, k_at:v_at], fused[:, v_at:])
            self._add(adapters, ("q_proj", "k_proj", "v_proj"), x, parts)
        config = self._config
        heads = fused.view(len(fused), -1, config.head_dim)
        kv = config.num_kv_heads
        q, k, v = torch.split(heads, [config.num_heads, kv, kv], dim=1)
        if weights.q_norm is not None and weights.k_norm is not None:
            q, k = weights.q_norm(q), weights.k_norm(k)
        return q, k, v

    def finish(
        self, hidden: Tensor, attended: Tensor, adapters: Sequence[AdapterRun] = ()
    ) -> Tensor:
        """The layer's input hidden[n, H] and attended[n, Hq * D] -> its output, a new [n, H]."""
        weights = self.weights
        out = weights.o.onto(hidden, attended)
        if adapters:
            self._add(adapters, ("o_proj",), attended, (out,))
        x = weights.post_norm(out)
        inner = self._inner(x, adapters)
        out = weights.down.onto(out, inner)
        if adapters:
            self._add(adapters, ("down_proj",), inner, (out,))
        return out

    def _inner(self, x: Tensor, adapters: Sequence[AdapterRun]) -> Tensor:
        """silu(gate) * up, with what the adapters add to each on their own rows.

        Rows without an adapter go the way that they go alone: their bits are those of the base.
        """
        gate_up = self.weights.gate_up
        num_adapted = sum(run.stop - run.start for run in adapters)
        inner = gate_up.gated(x) if num_adapted < len(x) else None
        for run in adapters:
            rows = x[run.start : run.stop]
            gate, up = gate_up(rows).chunk(2, dim=-1)
            own = AdapterRun(0, len(rows), run.adapter)
            self._add([own], ("gate_proj", "up_proj"), rows, (gate, up))
            adapted = silu_product(gate, up)
            if inner is None:
                inner = x.new_empty((len(x), adapted.shape[1]))
            inner[run.start : run.stop] = adapted
        assert inner is not None, "a layer has rows"
        return inner

    def _add(
        self,
        runs: Sequence[AdapterRun],
        modules: tuple[str, ...],
        x: Tensor,
        to: tuple[Tensor, ...],
    ) -> None:
        for module, target in zip(modules, to, strict=True):
            for rows, delta in deltas(runs, self.index, module, x):
                target[rows].add_(delta)


@dataclass(frozen=True)
class Identity:
    """What a fingerprint is made of besides the architecture."""

    weights: str
    """Digest of the weights as stored."""
    tokenizer: str
    dtype: str
    quantization: Quantization
    kernel: str
    """Which compiled kernels it is computed with; empty for torch's own."""


@dataclass(frozen=True)
class Ends:
    """What stands before and after the layers."""

    embedding: Tensor
    """[V, H]."""
    final_norm: RmsNorm
    head: Linear
    head_rows: Tensor
    """[V, H] the head as stored, for a few chosen rows; where they are tied, the embedding."""


class Decoder:
    """The layers with the embedding before them and the head after them."""

    def __init__(
        self,
        config: ModelConfig,
        layers: list[DecoderLayer],
        ends: Ends,
        identity: Identity,
        fused: FusedLayers | None = None,
    ) -> None:
        self.config = config
        self.layers = layers
        self.dtype = ends.embedding.dtype
        self.device = ends.embedding.device
        self.rope = Rope(config.rope, config.head_dim, self.device)
        self.weight_bytes = ends.head.weight_bytes + sum(layer.weight_bytes for layer in layers)
        """Bytes of weights that a decode step reads."""
        self.fused = fused
        """None: layers are computed one by one."""
        self._ends = ends
        self._identity = identity
        self.fingerprint = self.fingerprint_with(None)

    def over_same_weights(
        self, config: ModelConfig, identity: Identity, device: torch.device
    ) -> Decoder | None:
        """A decoder of that identity on this one's weights in memory; None where they are others."""
        same = replace(self._identity, tokenizer=identity.tokenizer) == identity
        if not same or self.device.type != device.type or config != self.config:
            return None
        return Decoder(self.config, self.layers, self._ends, identity, self.fused)

    @property
    def is_same_for_any_threads(self) -> bool:
        """True where the number of threads changes no bit of KV: where the layers are compiled, and in bf16
        for weights as stored. Plain torch may divide a sum between its threads; packed matrices, which
        adapters are made of, were never found to."""
        is_packed = self.dtype == torch.bfloat16 and self.quantization == "none"
        return self.fused is not None or is_packed

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids[n] int64 -> [n, H]."""
        return self._ends.embedding.index_select(0, token_ids)

    def logits(self, hidden: Tensor, allowed: Tensor | None = None) -> Tensor:
        """The last layer's output [n, H] -> fp32 [n, V], or [n, len(allowed)] in its order."""
        x = self._ends.final_norm(hidden)
        if allowed is None:
            return self._ends.head.wide(x)
        rows = self._ends.head_rows.index_select(0, allowed).float()
        # A library sums one row in another order than several: on a CPU each row is asked for alone.
        parts = x.float().chunk(max(len(x), 1) if x.device.type == "cpu" else 1)
        return torch.cat([functional.linear(part, rows) for part in parts])

    @property
    def kernel(self) -> str:
        """The name of the compiled kernels it is computed with; empty for torch's own."""
        return self._identity.kernel

    @property
    def quantization(self) -> Quantization:
        """As what the matrices are kept."""
        return self._identity.quantization

    @property
    def weights_digest(self) -> str:
        """Of the weights as stored."""
        return self._identity.weights

    def fingerprint_with(
        self, adapter: LoraAdapter | None, invoked_at: int | None = None
    ) -> Fingerprint:
        """Names everything that KV computed by this decoder (with `adapter`) depends on.

        Rows of an aLoRA depend on where in their sequence it was invoked, too.
        """
        on_cpu, is_bf16 = self.device.type == "cpu", self.dtype == torch.bfloat16
        said = self._answers_from(adapter) | {
            "kernel": self._identity.kernel,
            "numerics": NUMERICS_OF_BF16 if on_cpu and is_bf16 else NUMERICS,
        }
        is_plain = on_cpu and not self.kernel and not is_bf16
        if is_plain and any(self.config.sliding_window):
            said["windows"] = "by block"  # they began where a pass was cut before
        if invoked_at is not None:
            said["invoked_at"] = invoked_at
        return Fingerprint(_digest(said))

    def answers_digest(self, adapter: LoraAdapter | None) -> str:
        """Names what answers of this decoder (with `adapter`) depend on: weights, dtype, quantization and
        tokenizer, and neither the kernel nor the device.

        These differ in the last bits only, and machines of one cluster may have different ones: they would
        refuse to go on with each other's answers.
        """
        return _digest(self._answers_from(adapter))

    def _answers_from(self, adapter: LoraAdapter | None) -> dict[str, object]:
        identity = self._identity
        said = {
            "architecture": self.config.architecture(),
            "weights": identity.weights,
            "tokenizer": identity.tokenizer,
            "dtype": identity.dtype,
            "int8": identity.quantization == "int8",
            "adapter": adapter.digest if adapter is not None else None,
        }
        if identity.quantization == "int4":
            said["quantization"] = "int4"
        return said


def _digest(said: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Fingerprints:
    """What names KV of a decoder with each adapter of a set. Safe from several threads."""

    def __init__(self, decoder: Decoder, adapters: AdapterSet) -> None:
        self._decoder, self._adapters = decoder, adapters
        self._known: dict[str, Fingerprint] = {}

    def of(self, adapter: str | None) -> Fingerprint:
        """What names KV computed with the adapter. Raises UnknownModel."""
        if adapter is None:
            return self._decoder.fingerprint
        # By digest: another adapter may be loaded under the name while this is asked.
        chosen = self._adapters.known(adapter)
        if chosen.digest not in self._known:
            self._known[chosen.digest] = self._decoder.fingerprint_with(chosen)
        return self._known[chosen.digest]

    def of_context(self, adapter: str | None) -> Fingerprint:
        """What names KV of rows before anything invokes the adapter: for an aLoRA, the model's own.

        Raises UnknownModel.
        """
        is_invoked = adapter is not None and self._adapters.known(adapter).invocation
        return self.of(None if is_invoked else adapter)

    def invoked(self, request: Request) -> Invoked | None:
        """Where in the request its aLoRA begins, and what names KV from there on; None without one."""
        adapter = None if request.adapter is None else self._adapters.known(request.adapter)
        if adapter is None or not adapter.invocation:
            return None
        start = adapter.begins(request.prompt.token_ids)
        if start is None:
            return Invoked(request.prompt.num_tokens, self.of(None))
        return Invoked(start, self._decoder.fingerprint_with(adapter, start))
