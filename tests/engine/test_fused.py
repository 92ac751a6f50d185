"""Layers in one call give the bits of one layer after the other, whatever the weights are kept as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.core import ALL_ROWS, GivenRows, Plan
from kdn.engine import Capture, Pass, PrefixKV, SequenceKV, SequenceSlice, SuffixKV
from kdn.model import LoadedModel, load_model
from kdn.model.attention import BoundAttention
from kdn.model.decoder import FusedLayers, KvNote
from kdn.model.kernels import KernelAttention, KernelLayers, Kernels
from tests.engine.runs import shape_of, some_tokens

TASKS = Path("/proc/self/task")
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 64, "num_hidden_layers": 4}
FAMILIES = {
    "llama": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2},  # with biases
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2},  # with norms of heads
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 40},
}


@pytest.fixture(scope="module", params=["kernels", "floats"])
def library(request: pytest.FixtureRequest) -> Kernels:
    """The compiled kernels of bf16, and those of fp32."""
    found: Kernels = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Counted(FusedLayers):
    """Layers in one call, and which they were."""

    def __init__(self, layers: FusedLayers) -> None:
        self.row_bytes = layers.row_bytes
        self.layers = layers
        self.calls: list[tuple[int, int]] = []

    def run(
        self,
        hidden: Tensor,
        bound: BoundAttention,
        notes: Sequence[KvNote | None],
        first: int,
        stop: int,
    ) -> Tensor | None:
        self.calls.append((first, stop))
        return self.layers.run(hidden, bound, notes, first, stop)


@dataclass
class Runner:
    """Passes over one model, so many layers in a call at most."""

    model: LoadedModel
    kernels: Kernels
    most_layers: int

    def decoding(self) -> list[tuple[SequenceSlice, Capture | None]]:
        """Three sequences that decode: one token, one with two guesses, one behind a prefix."""
        made = [self._behind(70, [7], notes=True), self._behind(9, [8, 9, 10], notes=False)]
        made.append(self._behind(130, [11], notes=True, num_prefix=64))
        return made

    def beside_a_prompt(self) -> list[tuple[SequenceSlice, Capture | None]]:
        """A prompt's rows 64 to 330 and one that decodes. The buffer for notes ends at 256."""
        shape, dtype = shape_of(self.model), self.model.decoder.dtype
        kv, noted = SequenceKV(SuffixKV(shape, dtype, "cpu", 340)), Capture(shape, dtype, 0, 256)
        plan = Plan(some_tokens(330, 200, seed=3))
        self.run([SequenceSlice.prefill(plan, kv, 0, 64, capture=noted)])
        prompt = SequenceSlice.prefill(plan, kv, 64, 330, capture=noted)
        return [(prompt, noted), self._behind(70, [7], notes=True)]

    def recomputing(self) -> list[tuple[SequenceSlice, Capture | None]]:
        """Six rows of a prompt, far apart, over the KV of another one."""
        shape, dtype = shape_of(self.model), self.model.decoder.dtype
        kv = SequenceKV(SuffixKV(shape, dtype, "cpu", 340))
        self.run([SequenceSlice.prefill(Plan(some_tokens(330, 200, seed=4)), kv, 0, 330)])
        rows = (GivenRows((3, 64, 65, 200, 300, 329)), *(ALL_ROWS,) * (shape.num_layers - 1))
        plan = Plan(some_tokens(330, 200, seed=3), rows=rows)
        return [(SequenceSlice.prefill(plan, kv, 0, 330), None)]

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
        while not step.advance(self.most_layers):
            pass
        assert step.done
        return step.logits()


def outcome(runner: Runner, pairs: list[tuple[SequenceSlice, Capture | None]]) -> list[Tensor]:
    """Logits, KV and what was noted, of all sequences."""
    found = runner.run([one for one, _ in pairs])
    for one, noted in pairs:
        suffix = one.kv.suffix
        assert suffix.num_columns == one.stop - one.kv.num_prefix
        found += [suffix.k, suffix.v]
        if noted is not None:
            found.append(noted.note_at(0, noted.stop).to)
    return found


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threads", [1, 3])
def test_one_call_gives_the_bits_of_many(
    family: str,
    quantization: str,
    threads: int,
    library: Kernels,
    tiny_model: Callable[..., Path],
    model_cache: Path,
) -> None:
    if quantization == "none" and library.dtype == torch.float32 and not library.multiplies_floats:
        pytest.skip("torch multiplies whole fp32 matrices here, with AVX512")
    torch.set_num_threads(threads)
    model = load_model(
        tiny_model(family, **SHAPE, **FAMILIES[family]),
        cache_dir=model_cache,
        dtype=str(library.dtype).removeprefix("torch."),
        device="cpu",
        quantization=quantization,
        find_kernels=lambda: library,
        find_float_kernels=lambda: library,
    )
    assert isinstance(model.decoder.fused, KernelLayers)
    counted = Counted(model.decoder.fused)
    together, apart = Runner(model, library, 3), Runner(model, library, 3)
    for make in (Runner.decoding, Runner.beside_a_prompt, Runner.recomputing):
        model.decoder.fused = None
        many = outcome(apart, make(apart))
        model.decoder.fused = counted
        one = make(together)
        counted.calls.clear()
        assert_same(outcome(together, one), many)
        wants_all = make is Runner.decoding
        rest = [(3, 4)] if wants_all else []  # of a prompt the last layer computes one row
        assert counted.calls == [(0, 3), *rest]


def test_rows_with_gaps_go_through_one_call_only_where_nothing_is_noted(
    library: Kernels, tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    """The kernel notes neighbouring rows."""
    model = load_model(
        tiny_model("llama", **SHAPE, **FAMILIES["llama"]),
        cache_dir=model_cache,
        dtype=str(library.dtype).removeprefix("torch."),
        device="cpu",
        quantization="int4",
        find_kernels=lambda: library,
        find_float_kernels=lambda: library,
    )
    assert model.decoder.fused is not None
    model.decoder.fused = counted = Counted(model.decoder.fused)
    runner = Runner(model, library, 3)
    ((plain, _),) = runner.recomputing()
    noted = Capture(shape_of(model), model.decoder.dtype, 0, 340)
    for one, calls in ((plain, [(0, 3)]), (replace(plain, capture=noted), [])):
        counted.calls.clear()
        runner.run([one])
        assert counted.calls == calls


def test_a_pass_goes_on_with_the_threads_that_there_are_now(
    floats: Kernels, tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    """Beside others a pass begins with one thread, and gets the second when they are done."""
    if not TASKS.is_dir():
        pytest.skip("the system does not list the threads of a process")
    model = load_model(
        tiny_model("llama", **SHAPE, **FAMILIES["llama"]),
        cache_dir=model_cache,
        dtype="float32",
        device="cpu",
        quantization="int8",
        find_float_kernels=lambda: floats,
    )
    runner = Runner(model, floats, 1)

    def begin_with_one(later: int) -> tuple[list[Tensor], list[int]]:
        pairs, alive = runner.beside_a_prompt(), []
        with torch.inference_mode():
            step = Pass(model.decoder, KernelAttention(floats), [one for one, _ in pairs])
            while not step.advance(1):
                alive.append(len(list(TASKS.iterdir())))
                torch.set_num_threads(later)
            return step.logits(), alive

    def on_a_thread_of_its_own(later: int) -> tuple[list[Tensor], list[int]]:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as own:
            return own.submit(begin_with_one, later).result()

    alone, few = on_a_thread_of_its_own(1)
    helped, more = on_a_thread_of_its_own(3)
    assert few[1] - few[0] == 0
    assert more[1] - more[0] == 2  # two workers beside the thread itself
    assert_same(helped, alone)


def assert_same(one: Sequence[Tensor], many: Sequence[Tensor]) -> None:
    assert len(one) == len(many)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
