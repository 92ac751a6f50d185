"""Exactness does not depend on who shares the pass: every kind of request gets the bits it gets alone.

Passes are drawn at random: cold prompts, hits, parts of long prompts, decoded tokens, adapters' rows,
scaled columns, blended columns, prompts of one token; each is compared in its logits and in the KV that
would be stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from kdn.clock import ManualClock
from kdn.core import (
    ALL_ROWS,
    Choose,
    ColumnScale,
    LayerView,
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    Sampling,
    Segment,
    StoredRun,
    Token,
)
from kdn.engine import (
    Capture,
    Engine,
    EngineLimits,
    HeldKV,
    Pass,
    PrefixKV,
    SequenceKV,
    SequenceSlice,
    SuffixKV,
    plain,
)
from kdn.model import LoadedModel, load_model
from kdn.model.arithmetic import holds_bits
from kdn.model.attention import Attention, AttentionSlice, BoundAttention, Scaling, TorchAttention
from kdn.model.kernels import KernelAttention, Kernels, NoKernel, load_floats
from kdn.model.kernels import load as load_kernels
from tests.engine.runs import shape_of, some_tokens

KINDS = ("cold", "hit", "part", "decoded", "scaled", "gained", "blended")


@dataclass(frozen=True)
class Case:
    """A model with two adapters, and the attention that it runs on."""

    model: LoadedModel
    attention: Attention


@dataclass(frozen=True)
class Member:
    """One request of a pass, and how it reached this pass."""

    kind: str
    num_tokens: int
    seed: int
    adapter: str | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return some_tokens(self.num_tokens, 200, seed=self.seed)


def write_adapter(folder: Path, seed: int, modules: Sequence[str]) -> Path:
    """A random LoRA on the tiny model, of rank 3."""
    sizes = {"q_proj": (64, 64), "v_proj": (64, 32), "gate_proj": (64, 96), "down_proj": (96, 64)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for module in modules:
            place = "mlp" if module in ("gate_proj", "down_proj") else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{place}.{module}.lora_"
            rows, out = sizes[module]
            tensors[f"{name}A.weight"] = torch.randn((3, rows), generator=generator)
            tensors[f"{name}B.weight"] = torch.randn((out, 3), generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def weaken(adapter: Path) -> None:
    """Make it as strong as a short training would."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["lora_alpha"] = 0.02
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


SHAPES = {
    "bf16, heads of 16": ("bfloat16", {}),
    "fp32, heads of 16": ("float32", {}),
    "bf16, one head of 64": ("bfloat16", {"num_attention_heads": 1, "num_key_value_heads": 1}),
    "fp32 compiled, heads of 16": ("float32", {}),
    "fp32, eight heads of 8": ("float32", {"num_attention_heads": 8, "num_key_value_heads": 4}),
}


@pytest.fixture(scope="module", params=SHAPES)
def case(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    model_cache: Path,
) -> Case:
    dtype, options = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("adapters")
    all_modules = ("q_proj", "v_proj", "gate_proj", "down_proj")
    if options.get("num_attention_heads", 4) == 4:
        adapters = {
            "much": write_adapter(folder / "much", 1, all_modules),
            "little": write_adapter(folder / "little", 2, ("q_proj",)),
        }
    else:
        adapters = {"much": write_adapter(folder / "much", 1, ("gate_proj", "down_proj"))}
    kernels: Kernels | None = None
    if dtype == "bfloat16" or "compiled" in request.param:
        try:
            find = load_kernels if dtype == "bfloat16" else load_floats
            kernels = find(tmp_path_factory.mktemp("kernels"))
        except NoKernel:
            kernels = None
    model = load_model(
        tiny_model("llama", **options),
        cache_dir=model_cache,
        dtype=dtype,
        device="cpu",
        adapters=adapters,
        find_kernels=lambda: kernels,
        find_float_kernels=lambda: kernels,
    )
    decoder = model.decoder
    attention: Attention = TorchAttention()
    if kernels and KernelAttention.suits(kernels, decoder.dtype, "cpu", decoder.config.head_dim):
        attention = KernelAttention(kernels)
    if not holds_bits(decoder, attention):
        pytest.skip("on this processor no KV of this shape is stored")
    return Case(model, attention)


def first_rows(view: LayerView, count: int) -> Tensor:
    return torch.arange(view.rows.numel() - count, view.rows.numel())


def plan_of(case: Case, member: Member, prefix: Tensor) -> Plan:
    """The plan of a member, whose whole prompt has the KV `prefix` when it is computed alone."""
    plan, size = Plan(member.tokens), member.num_tokens
    if member.kind == "hit" and size > 1:
        return replace(plan, prefix=HeldKV(prefix[:, :, : max(size * 2 // 3, 1)], f"p{member}"))
    if member.kind in ("scaled", "gained"):
        literal = member.kind == "gained"
        scale = ColumnScale(1, tuple(range(0, size, 3)), 2.0, (0,), literal=literal)
        return replace(plan, scale=(scale,))
    if member.kind == "blended" and size > 8:
        stored = HeldKV(prefix[:, :, 2:6].flip(2).contiguous(), f"s{member}")
        layers = case.model.decoder.config.num_layers
        rows = (Choose(first_rows, size - 2),) + (ALL_ROWS,) * (layers - 1)
        return replace(plan, stored=(StoredRun(2, stored),), rows=rows)
    return plan


def slice_of(case: Case, member: Member) -> tuple[SequenceSlice, Capture]:
    """The member on its way into a pass: what comes before that pass is done alone."""
    model, size = case.model, member.num_tokens
    adapter = model.adapters[member.adapter] if member.adapter else None
    shape, dtype = shape_of(model), model.decoder.dtype
    whole = Capture(shape, dtype, 0, size)
    alone = SequenceKV(SuffixKV(shape, dtype, "cpu", size + 1))
    plan = Plan(member.tokens)
    run(case, [SequenceSlice.prefill(plan, alone, 0, size, adapter=adapter, capture=whole)])
    noted = Capture(shape, dtype, 0, size + 1)
    if member.kind == "decoded":
        return SequenceSlice.decode(alone, [7], adapter=adapter, capture=noted), noted
    plan = plan_of(case, member, whole.retained(member.tokens, 0).kv)
    first = plan.num_prefix
    prefix = PrefixKV("p", first, shape, dtype, "cpu") if plan.prefix is not None else None
    kv = SequenceKV(SuffixKV(shape, dtype, "cpu", size - first), prefix, first)
    if member.kind == "part" and size > 128:
        run(case, [SequenceSlice.prefill(plan, kv, 0, 128, adapter=adapter)])
        first = 128
    one = SequenceSlice.prefill(
        plan, kv, first, size, adapter=adapter, capture=noted, new_prefix=prefix
    )
    return one, noted


@torch.inference_mode()
def run(case: Case, slices: Sequence[SequenceSlice]) -> list[Tensor]:
    step = Pass(case.model.decoder, case.attention, slices)
    while not step.advance():
        pass
    return step.logits()


def outcome(case: Case, members: Sequence[Member]) -> list[tuple[Tensor, Tensor]]:
    """Logits and noted KV of each member of one pass."""
    pairs = [slice_of(case, member) for member in members]
    logits = run(case, [one for one, _ in pairs])
    tokens = [(*member.tokens, 7) for member in members]
    return [
        (own, noted.retained(ids, 0).kv)
        for own, (_, noted), ids in zip(logits, pairs, tokens, strict=True)
    ]


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    sizes = st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128, 129, 200, 257, 300]))
    names = st.sampled_from([None, None, "much", "little"])
    made = st.builds(Member, st.sampled_from(KINDS), sizes, st.integers(0, 10_000), names)
    return draw(st.lists(made, min_size=2, max_size=6, unique_by=lambda member: member.seed))


@given(members(), st.integers(1, 3), st.integers(1, 3))
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_company_changes_no_bit(
    case: Case, drawn: list[Member], threads: int, other_threads: int
) -> None:
    """Nor does the number of threads, where the engine changes it as processors are free."""
    torch.set_num_threads(threads)
    known = [m if m.adapter in case.model.adapters else replace(m, adapter=None) for m in drawn]
    together = outcome(case, known)
    if case.model.decoder.is_same_for_any_threads:
        torch.set_num_threads(other_threads)
    for member, (logits, kv) in zip(known, together, strict=True):
        ((own_logits, own_kv),) = outcome(case, [member])
        assert torch.equal(logits, own_logits), f"logits of {member}"
        assert torch.equal(kv, own_kv), f"KV of {member}"


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 999)), min_size=2, max_size=5))
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_prompts_of_one_token_do_not_feel_each_other(
    case: Case, drawn: list[tuple[int, int]]
) -> None:
    """They run in chunks of 128 rows, in the memory of one layer."""

    def ran(prompts: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        model, pairs = case.model, []
        shape, dtype = shape_of(model), model.decoder.dtype
        for size, seed in prompts:
            plan = Plan(some_tokens(size, 200, seed=seed), one_layer=True, row_chunk=128)
            kv = SequenceKV(SuffixKV(shape, dtype, "cpu", size, one_layer=True))
            noted = Capture(shape, dtype, 0, size)
            pairs.append((SequenceSlice.prefill(plan, kv, 0, size, capture=noted), noted, plan))
        logits = run(case, [one for one, _, _ in pairs])
        return [
            (own, noted.retained(plan.token_ids, 0).kv)
            for own, (_, noted, plan) in zip(logits, pairs, strict=True)
        ]

    for prompt, (logits, kv) in zip(drawn, ran(drawn), strict=True):
        ((own_logits, own_kv),) = ran([prompt])
        assert torch.equal(logits, own_logits)
        assert torch.equal(kv, own_kv)


@given(st.integers(1, 300), st.integers(0, 999), st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hit_a_part_and_a_decoded_token_have_the_bits_of_a_full_prefill(
    case: Case, size: int, seed: int, data: st.DataObject
) -> None:
    tokens = some_tokens(size + 1, 200, seed=seed)
    member = Member("cold", size, seed)
    ((logits, whole),) = outcome(case, [member])
    for kind in ("hit", "part"):
        ((own, kv),) = outcome(case, [Member(kind, size, seed)])
        assert torch.equal(own, logits)
        at = max(size * 2 // 3, size > 1) if kind == "hit" else 128 if size > 128 else 0
        assert torch.equal(kv[:, :, at:size], whole[:, :, at:size])
    ((decoded, kv),) = outcome(case, [Member("decoded", size, seed)])
    model = case.model
    noted = Capture(shape_of(model), model.decoder.dtype, 0, size + 1)
    plan = Plan((*tokens[:size], 7))
    longer = SequenceKV(SuffixKV(shape_of(model), model.decoder.dtype, "cpu", size + 1))
    (full,) = run(case, [SequenceSlice.prefill(plan, longer, 0, size + 1, capture=noted)])
    assert torch.equal(decoded, full)
    assert torch.equal(kv[:, :, size], noted.retained(plan.token_ids, 0).kv[:, :, size])


@dataclass(frozen=True)
class Asked:
    """One request to an engine."""

    document: int
    question: int
    seed: int
    max_tokens: int
    adapter: str | None
    is_warm: bool
    """KV of its document is stored."""

    def request(self, name: str) -> Request:
        parts = (
            Segment(Role.DOCUMENT, some_tokens(self.document, 200, seed=self.seed)),
            Segment(Role.QUESTION, some_tokens(self.question, 200, seed=self.seed + 1)),
        )
        sampling = Sampling(max_tokens=self.max_tokens, ignore_eos=True, logprobs=2)
        return Request(name, Prompt(parts), sampling, adapter=self.adapter, retention=Retention.ALL)


class Shelf:
    """A planner that offers what it was given for a document, and notes what it is handed."""

    def __init__(self, stored: dict[tuple[int, ...], Tensor]) -> None:
        self.stored = stored
        self.retained: dict[str, list[tuple[int, Tensor]]] = {}

    def _found(self, request: Request) -> tuple[int, ...]:
        document = request.prompt.segments[0].token_ids
        return document if document in self.stored else ()

    def cached_tokens(self, request: Request) -> int:
        return len(self._found(request))

    def plan(self, request: Request) -> Planned:
        document = self._found(request)
        if not document:
            return plain(request)
        held = HeldKV(self.stored[document], f"{hash(document)}")
        return Planned(Plan(request.prompt.token_ids, prefix=held), exact=len(document))

    def retain(self, request: Request, kept: RetainedKV) -> None:
        self.retained.setdefault(request.id, []).append((kept.start, kept.kv.clone()))


def served(
    case: Case, asked: Sequence[Asked], shelf: Shelf, limits: EngineLimits
) -> list[tuple[list[Token], list[tuple[int, Tensor]]]]:
    """Each request's tokens with their log-probabilities, and the KV that it leaves."""
    engine = Engine(case.model, case.attention, shelf, limits, ManualClock(), threaded=False)
    streams = [engine.submit(one.request(str(i))) for i, one in enumerate(asked)]
    while engine.step():
        pass
    engine.check()
    engine.close()
    return [
        ([e for e in stream if isinstance(e, Token)], shelf.retained.get(str(i), []))
        for i, stream in enumerate(streams)
    ]


ASKED = st.builds(
    Asked,
    st.sampled_from([1, 30, 127, 128, 200]),
    st.integers(1, 60),
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.sampled_from([None, None, "much"]),
    st.booleans(),
)


@given(
    st.lists(ASKED, min_size=2, max_size=6, unique_by=lambda one: one.seed),
    st.sampled_from([128, 256, 2048]),
    st.sampled_from([None, 300]),
)
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_an_engine_gives_each_request_what_it_gets_alone(
    case: Case, asked: list[Asked], batch: int, pack: int | None
) -> None:
    """Cold and warm, of one token and of several, cut and packed, with and without an adapter."""
    roomy = EngineLimits(kv_bytes=1 << 28)
    stored: dict[tuple[int, ...], Tensor] = {}
    for one in asked:
        if one.is_warm:
            _, ((_, kv), *_) = served(case, [one], Shelf({}), roomy)[0]
            stored[one.request("").prompt.segments[0].token_ids] = kv
    limits = EngineLimits(kv_bytes=1 << 28, max_batch_tokens=batch, pack_tokens=pack)
    together = served(case, asked, Shelf(stored), limits)
    for one, (tokens, kept) in zip(asked, together, strict=True):
        ((own_tokens, own_kept),) = served(case, [one], Shelf({}), roomy)
        assert tokens == own_tokens, f"{one}"
        whole = torch.cat([kv for _, kv in own_kept], dim=2)
        for start, kv in kept:
            assert torch.equal(kv, whole[:, :, start : start + kv.shape[2]]), f"{one}"


class Careless(TorchAttention):
    """Rounds a row by the rows beside it, as a library may, where a row is behind so many columns."""

    behind = 0

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        inner = super().bind(slices, cos, sin)
        grain = 0.01 * any(int(part.positions[-1]) >= self.behind for part in slices)

        class Bound(BoundAttention):
            def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return inner.place(layer, q, k, v)

            def attend(
                self,
                layer: int,
                q: Tensor,
                window: int | None,
                scalings: Sequence[Scaling | None] = (),
            ) -> Tensor:
                return inner.attend(layer, q, window, scalings) * (1 + grain * q.shape[0])

        return Bound()


def test_what_does_not_hold_its_bits_is_not_stored(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    shelf, limits = Shelf({}), EngineLimits(kv_bytes=1 << 28)
    assert not holds_bits(case.model.decoder, Careless())
    careless = replace(case, attention=Careless())
    ((tokens, kept),) = served(careless, [Asked(30, 9, 1, 3, None, is_warm=False)], shelf, limits)
    assert len(tokens) == 3
    assert kept == []
    assert "its KV is not stored" in caplog.text
