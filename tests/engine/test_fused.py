"""All layers in one call give the bits of one layer after the other, whatever the weights are kept as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.core import Plan
from kdn.engine import Capture, Pass, PrefixKV, SequenceKV, SequenceSlice, SuffixKV
from kdn.model import LoadedModel, load_model
from kdn.model.attention import BoundAttention
from kdn.model.decoder import FusedLayers, KvNote
from kdn.model.kernels import KernelAttention, KernelLayers, Kernels, NoKernel
from kdn.model.kernels import load as load_kernels
from tests.engine.runs import shape_of, some_tokens

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 64}
FAMILIES = {
    "llama": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2},  # with biases
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2},  # with norms of heads
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 40},
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    try:
        return load_kernels(tmp_path_factory.mktemp("kernels"))
    except NoKernel as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Counted(FusedLayers):
    """Layers in one call, and how often they were called."""

    def __init__(self, layers: FusedLayers) -> None:
        self.layers = layers
        self.num_calls = 0

    def run(
        self, hidden: Tensor, bound: BoundAttention, notes: Sequence[KvNote | None]
    ) -> Tensor | None:
        self.num_calls += 1
        return self.layers.run(hidden, bound, notes)


@dataclass
class Runner:
    """Passes over one model, in one call or a layer at a time."""

    model: LoadedModel
    kernels: Kernels
    fused: bool

    def slices(self) -> list[tuple[SequenceSlice, Capture | None]]:
        """Three sequences that decode: one token, one with two guesses, one behind a prefix."""
        made = [self._behind(70, [7], notes=True), self._behind(9, [8, 9, 10], notes=False)]
        made.append(self._behind(130, [11], notes=True, num_prefix=64))
        return made

    def _behind(
        self, size: int, ids: list[int], *, notes: bool, num_prefix: int = 0
    ) -> tuple[SequenceSlice, Capture | None]:
        shape, dtype = shape_of(self.model), self.model.decoder.dtype
        prefix = None
        if num_prefix:
            prefix = PrefixKV("p", num_prefix, shape, dtype, "cpu")
            generator = torch.Generator().manual_seed(1)
            for one in (prefix.k, prefix.v):
                one.copy_(torch.randn(one.shape, generator=generator))
            prefix.num_layers_ready = shape.num_layers
        kv = SequenceKV(SuffixKV(shape, dtype, "cpu", size + 8), prefix, num_prefix)
        plan = Plan(some_tokens(size, 200, seed=size))
        self.run([SequenceSlice.prefill(plan, kv, num_prefix, size)])
        noted = Capture(shape, dtype, 0, size + 8) if notes else None
        return SequenceSlice.decode(kv, ids, capture=noted), noted

    @torch.inference_mode()
    def run(self, slices: Sequence[SequenceSlice]) -> list[Tensor]:
        step = Pass(self.model.decoder, KernelAttention(self.kernels), slices)
        if self.fused:
            step.run()
        else:
            while not step.advance():
                pass
        assert step.done
        return step.logits()


def outcome(runner: Runner) -> list[Tensor]:
    """Logits, KV and what was noted, of all three sequences."""
    pairs = runner.slices()
    found = runner.run([one for one, _ in pairs])
    for one, noted in pairs:
        suffix = one.kv.suffix
        assert suffix.num_columns == one.stop - one.kv.num_prefix
        found += [suffix.k, suffix.v]
        if noted is not None:
            found.append(noted.note_at(0)[0])
    return found


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threads", [1, 3])
def test_one_call_gives_the_bits_of_many(
    family: str,
    quantization: str,
    threads: int,
    kernels: Kernels,
    tiny_model: Callable[..., Path],
    model_cache: Path,
) -> None:
    torch.set_num_threads(threads)
    model = load_model(
        tiny_model(family, **SHAPE, **FAMILIES[family]),
        cache_dir=model_cache,
        dtype="bfloat16",
        device="cpu",
        quantization=quantization,
        find_kernels=lambda: kernels,
    )
    if model.decoder.fused is None:
        assert quantization != "int4"
        assert not kernels.has_amx
        pytest.skip("matrices of this kind are compiled where there is AMX")
    assert isinstance(model.decoder.fused, KernelLayers)
    counted = model.decoder.fused = Counted(model.decoder.fused)
    one, many = outcome(Runner(model, kernels, True)), outcome(Runner(model, kernels, False))
    assert counted.num_calls == 1, "prompts run a layer at a time, the decoded tokens in one call"
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
