"""Texts steered beforehand: what is stored of them, and that only their own recipe meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.core import (
    EXACT,
    ColumnScale,
    KvShape,
    Plan,
    Prompt,
    Retention,
    Role,
    Segment,
    TokenIds,
)
from kdn.engine import run_alone
from kdn.errors import BadInput
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse.steer import (
    EditedText,
    Steer,
    SteerRecipe,
    edit_text,
    edited_blocks,
    recipe_scales,
    score_text,
)
from kdn.reuse.stored_run import recipe_for_whole
from kdn.store import open_store
from tests.engine.runs import load_tiny, run, some_tokens
from tests.reuse.steer.test_technique import ASK, ONE, PRELUDE, Desk

HEADS = (some_tokens(7, 200, seed=21), some_tokens(9, 200, seed=22))


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache)


@pytest.fixture
def desk(tiny: LoadedModel) -> Iterator[Desk]:
    with open_store(None, memory_bytes=1 << 26) as store:
        made = Desk(tiny, store)
        yield made
        assert made.stack.num_failures == 0
        made.stack.close()
        made.engine.check()
        made.engine.close()


def alone(model: LoadedModel) -> Callable[[Plan], Tensor]:
    def captured(plan: Plan) -> Tensor:
        kv = run_alone(model, TorchAttention(), plan, capture=True).captured
        assert kv is not None
        return kv

    return captured


def recipe(model: LoadedModel, **settings: object) -> SteerRecipe:
    made = SteerRecipe(model.decoder.fingerprint, weight=6.0, share=0.3, combine="union")
    return replace(made, **settings)  # type: ignore[arg-type]


def edited(model: LoadedModel, made: SteerRecipe) -> EditedText:
    return edit_text(alone(model), 4, made, HEADS, PRELUDE.token_ids, ONE.token_ids)


def put(desk: Desk, tiny: LoadedModel, made: SteerRecipe) -> EditedText:
    found = edited(tiny, made)
    shape = tiny.decoder.config.kv_shape("float32")
    prompt = Prompt((PRELUDE, ONE, ASK))
    for block in edited_blocks(found, prompt, shape, tiny.decoder.fingerprint, made, ""):
        desk.store.write_behind(block)
    desk.store.flush()
    return found


def test_column_sums_are_those_of_attention_written_out(tiny: LoadedModel) -> None:
    """Each row gives one unit a head: over all columns a layer's sum is rows times heads."""
    text = some_tokens(40, 200)
    first, second = score_text(alone(tiny), 4, ((), HEADS[0]), text)
    heads = tiny.decoder.config.num_heads
    assert first.shape == second.shape == (4, 40)
    assert first.sum(dim=1).tolist() == pytest.approx([40 * heads] * 4, rel=1e-4)
    assert (second.sum(dim=1) < 40 * heads).all(), "what stands before takes its share"


def test_a_weight_of_one_is_a_plain_prefill_bit_for_bit(tiny: LoadedModel) -> None:
    found = edited(tiny, recipe(tiny, weight=1.0))
    plain = alone(tiny)(Plan((*PRELUDE.token_ids, *ONE.token_ids), logits=()))
    assert torch.equal(found.kv, plain)


def test_a_steered_text_serves_its_recipe_and_no_other_request(
    desk: Desk, tiny: LoadedModel
) -> None:
    """The answer is that of a prompt that is computed in one go with the same columns scaled."""
    made = recipe(tiny)
    found = put(desk, tiny, made)
    segments = (PRELUDE, ONE, ASK)
    plain, _ = desk.ask(segments=segments, retention=Retention.NOTHING)
    steered, usage = desk.ask(Steer(recipe=made), segments=segments)
    assert (usage.exact, usage.lossy, usage.recomputed) == (0, 320, 12)
    whole = Prompt(segments).token_ids
    scales = recipe_scales(found.columns, made, 20)
    once = run(tiny, Plan(whole, scale=scales, scale_from=20)).logits
    assert steered[0] == pytest.approx(float(torch.log_softmax(once[-1], -1).max()), abs=1e-3)
    assert steered != pytest.approx(plain, abs=1e-4)
    after, usage = desk.ask(segments=segments, retention=Retention.NOTHING)
    assert after == pytest.approx(plain, abs=1e-4)
    assert usage.exact == 0, "nothing of it was stored as exact"
    other, usage = desk.ask(Steer(recipe=recipe(tiny, weight=7.0)), segments=segments)
    assert usage.lossy == 0
    assert other == pytest.approx(plain, abs=1e-4)
    assert desk.trace.count("steer.miss") == 1


def test_a_text_that_only_begins_like_a_steered_one_is_read_as_it_is(
    desk: Desk, tiny: LoadedModel
) -> None:
    """Of 320 stored tokens it has 80: the prelude, and 60 of the document."""
    made = recipe(tiny)
    found = put(desk, tiny, made)
    other = Segment(Role.DOCUMENT, (*ONE.token_ids[:60], *some_tokens(25, 200, seed=31)))
    segments = (PRELUDE, other, ASK)
    plain, _ = desk.ask(segments=segments, retention=Retention.NOTHING)
    asked, usage = desk.ask(Steer(recipe=made), segments=segments)
    assert asked == pytest.approx(plain, abs=1e-4)
    assert (usage.exact, usage.lossy, usage.recomputed) == (0, 0, 117)
    assert desk.trace.count("steer.miss") == 1
    assert desk.num_stored(PRELUDE, other) == 105, "stored as any other"
    _, usage = desk.ask(Steer(recipe=made), segments=(PRELUDE, ONE, other, ASK))
    assert (usage.lossy, usage.recomputed) == (320, 97), "the first is a steered one as a whole"
    whole = (*PRELUDE.token_ids, *ONE.token_ids)
    of_one = recipe_for_whole(made.taint, whole)
    *_, hit = desk.store.match(desk.fingerprint, of_one, "", Prompt(segments).token_ids).hits
    with desk.store.open(hit) as reader:  # type: ignore[union-attr]
        columns = {column for scale in reader.scales for column in scale.columns}
    assert (hit.id.num_tokens, hit.num_tokens) == (256, 60)
    assert columns == {20 + c for own in found.columns for c in own if c < 60}


def test_the_literal_form_is_put_into_v_and_readers_scale_nothing(
    desk: Desk, tiny: LoadedModel
) -> None:
    made = recipe(tiny, literal=True, weight=1.5)
    found = put(desk, tiny, made)
    assert found.scales == ()
    segments = (PRELUDE, ONE, ASK)
    steered, usage = desk.ask(Steer(recipe=made), segments=segments)
    assert usage.lossy == 320
    scales = recipe_scales(found.columns, made, 20)
    once = run(tiny, Plan(Prompt(segments).token_ids, scale=scales, scale_from=20)).logits
    assert steered[0] == pytest.approx(float(torch.log_softmax(once[-1], -1).max()), abs=1e-3)


def test_blocks_carry_their_own_columns(tiny: LoadedModel) -> None:
    """320 tokens in blocks of 20 (the prelude), 256 and 44."""
    tokens: TokenIds = (*PRELUDE.token_ids, *ONE.token_ids)
    shape: KvShape = tiny.decoder.config.kv_shape("float32")
    scales = (ColumnScale(0, (20, 275, 276), 2.0), ColumnScale(3, (300,), 2.0, (1,)))
    held = EditedText(
        torch.zeros(4, 2, len(tokens), shape.num_kv_heads, shape.head_dim), (), scales
    )
    made = recipe(tiny)
    blocks = [
        *edited_blocks(held, Prompt((PRELUDE, ONE, ASK)), shape, tiny.decoder.fingerprint, made, "")
    ]
    assert [block.columns for block in blocks] == [
        (),
        (ColumnScale(0, (0, 255), 2.0),),
        (ColumnScale(0, (0,), 2.0), ColumnScale(3, (24,), 2.0, (1,))),
    ]
    assert (
        {block.id.recipe for block in blocks} == {recipe_for_whole(made.taint, tokens)} != {EXACT}
    )


def test_a_recipe_of_another_model_fails_the_request(desk: Desk, tiny: LoadedModel) -> None:
    wrong = replace(recipe(tiny), model="another model")
    with pytest.raises(BadInput, match="was made for the model another mode"):
        desk.ask(Steer(recipe=wrong), segments=(PRELUDE, ONE, ASK))
