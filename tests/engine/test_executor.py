"""The executor against a dull forward pass, and the promises about reuse, plan by plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.core import ALL_ROWS, Choose, ColumnScale, Enter, GivenRows, LayerView, Plan, StoredRun
from kdn.engine import Pass, SequenceSlice
from kdn.model import LoadedModel
from kdn.model.attention import Attention, TorchAttention
from kdn.model.kernels import KernelAttention
from tests.engine.runs import HeldSource, Watcher, decode, load_tiny, new_kv, run, some_tokens
from tests.model.reference import forward

OPTIONS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 40}),
    ("qwen2", {}),
    ("qwen3", {}),
]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


@pytest.fixture(scope="module", params=["torch", "kernels"])
def tiny_bf16(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], model_cache: Path
) -> LoadedModel:
    """Head dim 64, so that the compiled kernels can run it; with torch's matrices and with ours."""
    folder = tiny_model("llama", hidden_size=256, head_dim=64)
    kernels = request.getfixturevalue("kernels") if request.param == "kernels" else None
    return load_tiny(folder, model_cache, "bfloat16", kernels)


@pytest.fixture(params=["plain", "kernel"])
def attention(request: pytest.FixtureRequest) -> Attention:
    if request.param == "plain":
        return TorchAttention()
    return KernelAttention(request.getfixturevalue("kernels"))


@pytest.mark.parametrize(("family", "options"), OPTIONS)
def test_prefill_gives_the_logits_of_a_dull_forward_pass(
    family: str, options: dict[str, object], tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    model = load_tiny(tiny_model(family, **options), model_cache)
    tokens = some_tokens(150, 200)
    everywhere = Plan(tokens, logits=tuple(range(150)))
    logits = run(model, everywhere).logits
    assert (logits - forward(model.decoder, tokens)).abs().max() < 1e-4


def test_a_prompt_cut_in_passes_gives_the_same(tiny: LoadedModel) -> None:
    tokens = some_tokens(300, 200)
    whole = run(tiny, Plan(tokens))
    parts = run(tiny, Plan(tokens), cuts=(128, 256))
    assert (whole.logits - parts.logits).abs().max() < 1e-4


@pytest.mark.parametrize("cut", [128, 256])
def test_in_bf16_a_prompt_cut_at_row_blocks_gives_the_same_bits(
    cut: int, tiny_bf16: LoadedModel, attention: Attention
) -> None:
    tokens = some_tokens(300, 200)
    whole = run(tiny_bf16, Plan(tokens), attention=attention)
    parts = run(tiny_bf16, Plan(tokens), cuts=(cut,), attention=attention)
    assert torch.equal(whole.logits, parts.logits)
    assert torch.equal(whole.captured, parts.captured)


@pytest.mark.parametrize("num_prefix", [1, 31, 128, 200, 256, 299])
def test_in_bf16_a_reused_prefix_gives_the_same_bits(
    num_prefix: int, tiny_bf16: LoadedModel, attention: Attention
) -> None:
    tokens = some_tokens(300, 200)
    whole = run(tiny_bf16, Plan(tokens), attention=attention)
    source = HeldSource(whole.captured[:, :, :num_prefix])
    reused = run(tiny_bf16, Plan(tokens, prefix=source), attention=attention)
    assert torch.equal(reused.logits, whole.logits)
    assert torch.equal(reused.captured, whole.captured[:, :, num_prefix:])
    assert source.started[:2] == [0, 1], "layer 1 is asked for before layer 0 is computed"


@pytest.mark.parametrize("num_prefix", [1, 100, 128, 299])
def test_in_fp32_a_reused_prefix_gives_the_same_logits(num_prefix: int, tiny: LoadedModel) -> None:
    tokens = some_tokens(300, 200)
    whole = run(tiny, Plan(tokens))
    reused = run(tiny, Plan(tokens, prefix=HeldSource(whole.captured[:, :, :num_prefix])))
    assert (reused.logits - whole.logits).abs().max() < 1e-4


def test_decoding_a_token_gives_what_prefilling_it_gives(tiny: LoadedModel) -> None:
    tokens = some_tokens(140, 200)
    kv = run(tiny, Plan(tokens[:137])).kv
    logits = [decode(tiny, [(kv, token)])[0][0] for token in tokens[137:]]
    expected = forward(tiny.decoder, tokens)[137:]
    assert (torch.stack(logits) - expected).abs().max() < 1e-4


def test_in_bf16_decoding_gives_the_same_bits_alone_in_company_and_after_a_prefix(
    tiny_bf16: LoadedModel, attention: Attention
) -> None:
    if isinstance(attention, TorchAttention):
        pytest.skip("only the kernel walks columns in the same order wherever they lie")
    tokens, other = some_tokens(290, 200), some_tokens(77, 200, seed=1)
    whole = run(tiny_bf16, Plan(tokens), attention=attention)
    prefix = HeldSource(whole.captured[:, :, :201])
    behind = run(tiny_bf16, Plan(tokens, prefix=prefix), attention=attention)
    company = run(tiny_bf16, Plan(other), attention=attention)
    alone = decode(tiny_bf16, [(whole.kv, 7)], attention)[0]
    together = decode(tiny_bf16, [(company.kv, 5), (behind.kv, 7)], attention)[1]
    assert torch.equal(alone, together)


def test_sequences_in_one_pass_do_not_meet(tiny: LoadedModel) -> None:
    one, two = some_tokens(50, 200, seed=1), some_tokens(33, 200, seed=2)
    slices = [SequenceSlice.prefill(Plan(t), new_kv(tiny, len(t)), 0, len(t)) for t in (one, two)]
    with torch.inference_mode():
        both = Pass(tiny.decoder, TorchAttention(), slices)
        while not both.advance():
            pass
        first, second = both.logits()
    assert (first - run(tiny, Plan(one)).logits).abs().max() < 1e-4
    assert (second - run(tiny, Plan(two)).logits).abs().max() < 1e-4


# --- plans that are more than a prefix ------------------------------------------------------------


def test_recomputing_every_row_over_junk_is_a_full_prefill(tiny: LoadedModel) -> None:
    tokens = some_tokens(90, 200)
    whole = run(tiny, Plan(tokens))
    junk = HeldSource(torch.full_like(whole.captured[:, :, 10:70], 3.0))
    rows = GivenRows(tuple(range(90)))
    recomputed = run(tiny, Plan(tokens, stored=(StoredRun(10, junk),), rows=(rows,)))
    assert (recomputed.logits - whole.logits).abs().max() < 1e-4
    assert (recomputed.captured - whole.captured).abs().max() < 1e-4


def test_stored_columns_in_their_own_place_spare_their_rows(tiny: LoadedModel) -> None:
    """KV of positions 20..60 of this very prompt, so that leaving them out changes nothing."""
    tokens = some_tokens(90, 200)
    whole = run(tiny, Plan(tokens))
    middle = HeldSource(whole.captured[:, :, 20:60])
    seen = Watcher()
    spared = run(tiny, Plan(tokens, stored=(StoredRun(20, middle),), observers=(seen,)))
    assert (spared.logits - whole.logits).abs().max() < 1e-4
    assert seen.rows[0].tolist() == [*range(20), *range(60, 90)]


def test_a_moved_chunk_is_rotated_to_its_new_place(tiny: LoadedModel) -> None:
    """Layer 0 depends on token and position only, so there a moved chunk equals a fresh one."""
    chunk, front = some_tokens(40, 200, seed=3), some_tokens(25, 200, seed=4)
    alone = run(tiny, Plan(chunk))
    fresh = run(tiny, Plan(front + chunk))
    moved = run(
        tiny, Plan(front + chunk + (5,), stored=(StoredRun(25, HeldSource(alone.captured)),))
    )
    at = slice(25, 65)
    there = moved.kv.suffix.k[0][:, at], fresh.kv.suffix.k[0][:, at]
    assert (there[0] - there[1]).abs().max() < 1e-4
    assert (moved.kv.suffix.k[1][:, at] - fresh.kv.suffix.k[1][:, at]).abs().max() > 1e-2


def keep_last(view: LayerView, count: int) -> Tensor:
    return torch.arange(view.rows.numel() - count, view.rows.numel())


def test_a_selector_narrows_the_rows_to_its_count(tiny: LoadedModel) -> None:
    """The last 30 rows go on behind layer 0; the rest stays as stored, which here is exact."""
    tokens = some_tokens(90, 200)
    whole = run(tiny, Plan(tokens))
    seen = Watcher()
    plan = Plan(
        tokens,
        stored=(StoredRun(0, HeldSource(whole.captured[:, :, :80])),),
        rows=(
            Choose(keep_last, 30),
            *(Choose(keep_last, 30),) * (tiny.decoder.config.num_layers - 1),
        ),
        observers=(seen,),
    )
    chosen = run(tiny, plan)
    assert seen.rows[0].numel() == 90
    assert seen.rows[1].tolist() == list(range(60, 90))
    assert (chosen.logits - whole.logits).abs().max() < 1e-4


def test_rows_may_enter_at_a_layer_with_a_supplied_state(tiny: LoadedModel) -> None:
    """All but the last row join at layer 1 with the state that a full prefill had there."""
    tokens = some_tokens(60, 200)
    seen = Watcher()
    whole = run(tiny, Plan(tokens, observers=(seen,)))
    first = tuple(range(59))
    layers = tiny.decoder.config.num_layers
    plan = Plan(
        tokens,
        stored=(StoredRun(0, HeldSource(whole.captured[:, :, :59])),),
        rows=(GivenRows((59,)), *(GivenRows(tuple(range(60))),) * (layers - 1)),
        enter=(Enter(1, first, seen.hidden[1][:59]),),
    )
    entered = run(tiny, plan)
    assert (entered.logits - whole.logits).abs().max() < 1e-4


def test_scaling_every_column_alike_changes_nothing_and_one_column_does(tiny: LoadedModel) -> None:
    tokens = some_tokens(40, 200)
    plain = run(tiny, Plan(tokens)).logits
    layers = range(tiny.decoder.config.num_layers)
    alike = tuple(ColumnScale(layer, tuple(range(40)), 0.5) for layer in layers)
    one = tuple(ColumnScale(layer, (3,), 8.0) for layer in layers)
    assert (run(tiny, Plan(tokens, scale=alike)).logits - plain).abs().max() < 1e-4
    assert (run(tiny, Plan(tokens, scale=one)).logits - plain).abs().max() > 1e-3


def test_a_column_scaled_to_nothing_is_as_if_it_were_not_there(tiny: LoadedModel) -> None:
    """Two rows: the second, not seeing the first, attends to itself only and gets its own value."""
    layers = range(tiny.decoder.config.num_layers)
    blind = tuple(ColumnScale(layer, (0,), 1e-30) for layer in layers)
    seen = run(tiny, Plan((9, 5), scale=blind)).logits
    longer = run(tiny, Plan((77, 5), scale=blind)).logits
    assert (seen - longer).abs().max() < 1e-5, "what stands first no longer matters"


def test_a_scale_belongs_to_the_sequence_and_holds_for_decoded_rows(tiny: LoadedModel) -> None:
    """Prefilling 41 tokens, or 40 and then one: the same logits, scaled in both."""
    tokens = some_tokens(41, 200)
    layers = range(tiny.decoder.config.num_layers)
    scale = tuple(ColumnScale(layer, (3, 7), 6.0, heads=(0, 2)) for layer in layers)
    whole = run(tiny, Plan(tokens, scale=scale)).logits
    part = run(tiny, Plan(tokens[:40], scale=scale))
    (after,) = decode(tiny, [(part.kv, tokens[40])])
    assert (after - whole).abs().max() < 1e-4
    unscaled = run(tiny, Plan(tokens)).logits
    assert (whole - unscaled).abs().max() > 1e-3


@pytest.mark.parametrize("cuts", [(128,), (128, 256)])
def test_a_scaled_prompt_cut_in_passes_gives_the_same(
    tiny: LoadedModel, cuts: tuple[int, ...]
) -> None:
    layers = range(tiny.decoder.config.num_layers)
    scale = tuple(ColumnScale(layer, (3, 200), 4.0) for layer in layers)
    plan = Plan(some_tokens(300, 200), scale=scale)
    assert (run(tiny, plan, cuts=cuts).logits - run(tiny, plan).logits).abs().max() < 1e-4


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("since", [20, 128, 200])
def test_rows_before_a_scale_begins_are_those_of_a_plain_prefill(
    tiny_bf16: LoadedModel, attention: Attention, since: int, literal: bool
) -> None:
    """Bit for bit; and the rows after it are those of a prompt whose beginning was stored plain."""
    tokens = some_tokens(300, 200)
    layers = range(tiny_bf16.decoder.config.num_layers)
    scale = tuple(ColumnScale(layer, (3, 150), 4.0, literal=literal) for layer in layers)
    plain = run(tiny_bf16, Plan(tokens), attention=attention)
    late = Plan(tokens, scale=scale, scale_from=since)
    found = run(tiny_bf16, late, attention=attention)
    assert torch.equal(found.captured[:, :, :since], plain.captured[:, :, :since])
    assert not torch.equal(found.captured[:, :, since:], plain.captured[:, :, since:])
    stored = HeldSource(plain.captured[:, :, :since])
    behind = run(tiny_bf16, replace(late, prefix=stored), attention=attention)
    assert torch.equal(behind.logits, found.logits)
    cut = run(tiny_bf16, late, cuts=(256,), attention=attention)
    assert torch.equal(cut.logits, found.logits)


def test_a_neighbours_scale_and_a_factor_of_one_leave_every_bit(tiny: LoadedModel) -> None:
    """Three sequences in one pass: plain, scaled, and scaled by 1."""
    tokens = some_tokens(30, 200)
    layers = range(tiny.decoder.config.num_layers)
    scales = [
        (),
        tuple(ColumnScale(layer, (3,), 8.0) for layer in layers),
        tuple(ColumnScale(layer, (3,), 1.0) for layer in layers),
    ]
    kvs = [new_kv(tiny, 30) for _ in scales]
    parts = [
        SequenceSlice.prefill(Plan(tokens, scale=scale), kv, 0, 30)
        for scale, kv in zip(scales, kvs, strict=True)
    ]
    with torch.inference_mode():
        step = Pass(tiny.decoder, TorchAttention(), parts)
        while not step.advance():
            pass
        plain, scaled, by_one = step.logits()
    assert torch.equal(by_one, plain)
    assert torch.equal(kvs[2].suffix.k, kvs[0].suffix.k)
    assert not torch.allclose(scaled, plain)


def test_the_literal_form_counts_values_several_times(tiny: LoadedModel) -> None:
    """The same as a prefill over stored V that was multiplied beforehand; nothing is renormalised."""
    tokens = some_tokens(40, 200)
    full = run(tiny, Plan(tokens))
    layers = range(tiny.decoder.config.num_layers)
    scale = tuple(ColumnScale(layer, (3, 4), 1.5, literal=True) for layer in layers)
    stored = full.captured[:, :, :39].clone()
    stored[:, 1, 3:5] *= 1.5
    last = (GivenRows((39,)),)
    baked = run(tiny, Plan(tokens, rows=last, stored=(StoredRun(0, HeldSource(stored)),)))
    whole = HeldSource(full.captured[:, :, :39])
    scaled = run(tiny, Plan(tokens, rows=last, stored=(StoredRun(0, whole),), scale=scale))
    assert (scaled.logits - baked.logits).abs().max() < 1e-4
    assert (scaled.logits - full.logits).abs().max() > 1e-3


def test_factors_of_one_column_multiply(tiny: LoadedModel) -> None:
    tokens = some_tokens(20, 200)
    twice = run(tiny, Plan(tokens, scale=(ColumnScale(0, (3,), 2.0), ColumnScale(0, (3, 5), 3.0))))
    once = run(tiny, Plan(tokens, scale=(ColumnScale(0, (3,), 6.0), ColumnScale(0, (5,), 3.0))))
    assert (twice.logits - once.logits).abs().max() < 1e-5


def test_sums_by_head_add_up_to_the_sums_over_heads(tiny: LoadedModel) -> None:
    """Each head's row puts 1 on all columns together."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(view: LayerView) -> None:
        rows, columns = torch.tensor([10, 20]), torch.arange(40)
        found.append((view.attend.by_head(rows, columns), view.attend(rows, columns)))

    run(tiny, Plan(some_tokens(40, 200), observers=(watch,)))
    for by_head, together in found:
        assert by_head.shape == (tiny.decoder.config.num_heads, 40)
        assert torch.allclose(by_head.sum(dim=1), torch.full((len(by_head),), 2.0))
        assert torch.allclose(by_head.sum(dim=0), together, atol=1e-5)


def test_attention_mass_adds_up_to_rows_times_heads(tiny: LoadedModel) -> None:
    sums: list[float] = []

    def watch(view: LayerView) -> None:
        rows, columns = torch.tensor([10, 20]), torch.arange(40)
        sums.append(float(view.attend(rows, columns).sum()))

    run(tiny, Plan(some_tokens(40, 200), observers=(watch,)))
    heads = tiny.decoder.config.num_heads
    assert sums == pytest.approx([2 * heads] * tiny.decoder.config.num_layers, rel=1e-5)


def test_logits_of_some_tokens_are_columns_of_all_logits(tiny: LoadedModel) -> None:
    tokens = some_tokens(20, 200)
    everything = run(tiny, Plan(tokens)).logits
    some = run(tiny, Plan(tokens, allowed=(7, 3, 99))).logits
    assert (some - everything[:, [7, 3, 99]]).abs().max() < 1e-5


def test_position_wise_work_in_chunks_gives_the_same(tiny: LoadedModel) -> None:
    tokens = some_tokens(100, 200)
    whole, chunked = run(tiny, Plan(tokens)), run(tiny, Plan(tokens, row_chunk=16))
    assert (whole.logits - chunked.logits).abs().max() < 1e-4


def test_at_the_last_layer_rows_without_wanted_logits_are_left_out(
    tiny_bf16: LoadedModel, attention: Attention
) -> None:
    """Asking for every row's logits finishes every row: the last one's are the same, and all K and V."""
    tokens = some_tokens(130, 200)
    last = run(tiny_bf16, Plan(tokens), attention=attention)
    every = run(tiny_bf16, Plan(tokens, logits=tuple(range(130))), attention=attention)
    none = run(tiny_bf16, Plan(tokens, logits=()), attention=attention)
    some = run(tiny_bf16, Plan(tokens, logits=(3, 70)), attention=attention)
    assert torch.equal(last.captured, every.captured)
    assert torch.equal(last.captured, none.captured)
    assert none.logits.numel() == 0
    assert (last.logits[0] - every.logits[129]).abs().max() < 0.05
    assert (some.logits - every.logits[[3, 70]]).abs().max() < 0.05


def test_rows_that_all_leave_still_have_stored_columns_placed(tiny: LoadedModel) -> None:
    """Nobody goes on behind layer 0; a second plan then finds the columns of every layer."""
    tokens, layers = some_tokens(60, 200), tiny.decoder.config.num_layers
    full = run(tiny, Plan(tokens))
    stored = (StoredRun(0, HeldSource(full.captured[:, :, :50])),)
    asking = tuple(range(50, 60))
    nobody = (GivenRows(asking), *(GivenRows(()) for _ in range(layers - 1)))
    seen = Watcher()
    look = Plan(
        tokens,
        rows=nobody,
        stored=stored,
        observers=(seen,),
        logits=(),
        then=lambda: Plan(tokens, rows=(GivenRows(asking),) + (ALL_ROWS,) * (layers - 1)),
    )
    assert (run(tiny, look).logits - full.logits).abs().max() < 1e-4
    assert list(seen.rows) == [0], "who is not there is not looked at"


def test_a_sequence_whose_rows_all_leave_does_not_disturb_its_neighbour(tiny: LoadedModel) -> None:
    one, two = some_tokens(50, 200, seed=1), some_tokens(33, 200, seed=2)
    layers = tiny.decoder.config.num_layers
    leaves = Plan(one, rows=(ALL_ROWS, *(GivenRows(()) for _ in range(layers - 1))), logits=())
    plans = (leaves, Plan(two))
    slices = [SequenceSlice.prefill(p, new_kv(tiny, p.num_tokens), 0, p.num_tokens) for p in plans]
    with torch.inference_mode():
        both = Pass(tiny.decoder, TorchAttention(), slices)
        while not both.advance():
            pass
        nothing, logits = both.logits()
    assert nothing.numel() == 0
    assert (logits - run(tiny, Plan(two)).logits).abs().max() < 1e-5
