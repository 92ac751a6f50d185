"""Steering in an engine over a real store: what it changes, what it leaves, what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
    Blend,
    Cause,
    ColumnScale,
    Finish,
    Invoked,
    Plan,
    Planned,
    Prompt,
    Request,
    RetainedPrefix,
    Retention,
    Role,
    Sampling,
    Segment,
    StoredRun,
    Token,
    Usage,
)
from kdn.engine import Engine, EngineLimits
from kdn.errors import BadInput
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, Stack
from kdn.reuse.blend import BlendReuse, RatioController
from kdn.reuse.shortened import LeadingTokens, reused_before
from kdn.reuse.steer import (
    Steer,
    SteerRecipe,
    SteerReuse,
    edit_text,
    edited_blocks,
    recipe_of,
    scales_of,
    steered_from,
)
from kdn.store import CODECS, Store, open_store
from kdn.trace import Recorder
from tests.engine.runs import HeldSource, load_tiny, run, some_tokens

PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
ONE = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=1))
TWO = Segment(Role.DOCUMENT, some_tokens(100, 200, seed=2))
ASK = Segment(Role.QUESTION, some_tokens(12, 200, seed=3))
TOLD = Segment(Role.INSTRUCTION, some_tokens(9, 200, seed=4))
STRESS = Steer(((30, 8.0), (31, 8.0), (350, 8.0)), after=0.0)
ROOMY = EngineLimits(1 << 28, max_batch_tokens=2048)
SENTENCES = (range(20, 110), range(110, 320), range(320, 420))


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache)


class Desk:
    """An engine with prefix reuse, blending and steering, stepped by hand."""

    def __init__(self, model: LoadedModel, store: Store, limits: EngineLimits = ROOMY) -> None:
        decoder = model.decoder
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.store, self.trace, self._count = store, Recorder(), 0
        self.fingerprint = decoder.fingerprint
        self.steer = SteerReuse(store, shape, lambda _: decoder.fingerprint, trace=self.trace)
        techniques = [
            PrefixReuse(store, shape, lambda _: decoder.fingerprint),
            BlendReuse(
                store,
                shape,
                lambda _: decoder.fingerprint,
                RatioController(0.25),
                SystemClock(),
                recipe=recipe_of,
            ),
            self.steer,
        ]
        self.stack = Stack(techniques, trace=self.trace)
        self.engine = Engine(
            model, TorchAttention(), self.stack, limits, SystemClock(), threaded=False
        )

    def ask(
        self,
        *options: object,
        segments: tuple[Segment, ...] = (PRELUDE, ONE, TWO, TOLD, ASK),
        **more: object,
    ) -> tuple[list[float], Usage]:
        """The log-probabilities of six greedy tokens, which no two different computations share."""
        self._count += 1
        sampling = Sampling(max_tokens=6, ignore_eos=True, logprobs=0)
        asked = Request(
            str(self._count),
            Prompt(segments),
            sampling,
            techniques=options,
            **more,  # type: ignore[arg-type]
        )
        stream = self.engine.submit(asked)
        while self.engine.step():
            pass
        *tokens, last = stream
        assert isinstance(last, Finish)
        return [t.logprob for t in tokens if isinstance(t, Token) and t.logprob], last.usage

    def num_stored(self, *segments: Segment) -> int:
        """Tokens of them that are stored as exact, from the first on."""
        ids = Prompt(segments).token_ids
        return self.store.match(self.fingerprint, EXACT, "", ids).num_tokens


@pytest.fixture
def desk(tiny: LoadedModel) -> Iterator[Desk]:
    with open_store(None, memory_bytes=1 << 26) as store:
        made = Desk(tiny, store)
        yield made
        assert made.stack.num_failures == 0
        made.stack.close()
        made.engine.check()
        made.engine.close()


def test_stressed_columns_change_the_answer_and_a_weight_of_one_does_not(desk: Desk) -> None:
    plain, _ = desk.ask(retention=Retention.NOTHING)
    by_one, _ = desk.ask(Steer(((30, 1.0),)), retention=Retention.NOTHING)
    stressed, _ = desk.ask(STRESS, retention=Retention.NOTHING)
    assert by_one == plain, "bit for bit"
    assert stressed != pytest.approx(plain, abs=1e-4)


def test_a_steered_answer_is_the_same_over_fresh_and_over_stored_kv(desk: Desk) -> None:
    """First nothing is stored, then all before the question, then the question too."""
    fresh, first = desk.ask(STRESS)
    stored, second = desk.ask(STRESS)
    desk.ask(retention=Retention.ALL)
    again, third = desk.ask(STRESS)
    assert stored == pytest.approx(fresh, abs=1e-4)
    assert again == pytest.approx(fresh, abs=1e-4)
    assert (first.exact, second.exact, third.exact) == (0, 429, 429)
    assert (sum(second.tiers.values()), sum(third.tiers.values())) == (429, 429)


def test_what_steering_computes_is_not_stored_and_the_rest_is(desk: Desk) -> None:
    plain, _ = desk.ask(retention=Retention.NOTHING)
    desk.ask(STRESS, retention=Retention.ALL)
    assert desk.num_stored(PRELUDE, ONE, TWO, TOLD, ASK) == 429, "all before the question"
    after, usage = desk.ask(retention=Retention.ALL)
    assert after == pytest.approx(plain, abs=1e-4)
    assert usage.exact == 429


def test_blended_documents_are_steered_without_another_pass(desk: Desk) -> None:
    for document in (ONE, TWO):
        desk.ask(segments=(PRELUDE, document, ASK))
    plain, before = desk.ask(Blend(0.2))
    stressed, after = desk.ask(Blend(0.2), STRESS)
    looked, _ = desk.ask(Blend(0.2), Steer(sentences=SENTENCES, after=0.0))
    assert before.blended == after.blended > 0
    assert before.recomputed == after.recomputed
    assert stressed != pytest.approx(plain, abs=1e-4)
    assert looked != pytest.approx(plain, abs=1e-4)
    assert next(e.fields["columns"] for e in desk.trace.events("steer.plan")) == 3


@pytest.mark.parametrize("max_batch_tokens", [128, 2048])
def test_a_look_stresses_the_sentence_that_it_found(
    tiny: LoadedModel, max_batch_tokens: int
) -> None:
    """The answer is that of a request that names this sentence beforehand; also cut in passes."""
    with open_store(None, memory_bytes=1 << 26) as store:
        desk = Desk(tiny, store, replace(ROOMY, max_batch_tokens=max_batch_tokens))
        looked, _ = desk.ask(Steer(sentences=SENTENCES, after=0.0), retention=Retention.NOTHING)
        (told,) = desk.trace.events("steer.plan")
        (best,) = (one for one in SENTENCES if len(one) == told.fields["columns"])
        factors = tuple((column, 3.0) for column in best)
        named, _ = desk.ask(Steer(factors, after=0.0), retention=Retention.SHARED)
        again, usage = desk.ask(Steer(sentences=SENTENCES, after=0.0))
        desk.engine.close()
    assert looked == pytest.approx(named, abs=1e-4)
    assert again == pytest.approx(looked, abs=1e-4)
    assert usage.exact == 429


@pytest.mark.parametrize("max_batch_tokens", [128, 2048])
def test_a_look_that_finds_nothing_clear_leaves_the_answer_alone(
    tiny: LoadedModel, max_batch_tokens: int
) -> None:
    """No sentence has all of the attention, so a look that asks for all of it stresses none."""
    unsure = Steer(sentences=SENTENCES, least_share=1.0, after=0.0)
    with open_store(None, memory_bytes=1 << 26) as store:
        desk = Desk(tiny, store, replace(ROOMY, max_batch_tokens=max_batch_tokens))
        plain, _ = desk.ask(retention=Retention.NOTHING)
        alone, _ = desk.ask(unsure, retention=Retention.SHARED)
        stored, usage = desk.ask(unsure)
        told = [e.fields["columns"] for e in desk.trace.events("steer.plan")]
        marked, _ = desk.ask(replace(unsure, factors=STRESS.factors))
        named, _ = desk.ask(STRESS)
        desk.engine.close()
    assert alone == pytest.approx(plain, abs=1e-4)
    assert stored == pytest.approx(plain, abs=1e-4)
    assert (usage.exact, told) == (429, [0, 0])
    assert marked == pytest.approx(named, abs=1e-4), "marks hold all the same"


def test_blended_documents_are_left_alone_where_no_sentence_is_clear(desk: Desk) -> None:
    for document in (ONE, TWO):
        desk.ask(segments=(PRELUDE, document, ASK))
    plain, _ = desk.ask(Blend(0.2))
    unsure, _ = desk.ask(Blend(0.2), Steer(sentences=SENTENCES, least_share=1.0, after=0.0))
    assert unsure == pytest.approx(plain, abs=1e-4)


def test_rows_that_see_scales_are_those_of_the_last_message_after_the_marks() -> None:
    prompt = Prompt((PRELUDE, ONE, TOLD, ASK))
    assert steered_from(prompt, ()) == 329
    assert steered_from(prompt, ((25, 3.0),)) == 329
    assert steered_from(prompt, ((25, 3.0), (334, 3.0))) == 335, "a mark in the question"
    assert steered_from(prompt, ((340, 3.0),)) == 340, "the last row always"


def test_scales_hold_from_a_share_of_the_layers_on() -> None:
    scales = scales_of(((3, 2.0), (5, 4.0), (6, 2.0)), 2 / 3, 6)
    assert [(s.layer, s.columns, s.factor) for s in scales] == [
        (4, (3, 6), 2.0),
        (4, (5,), 4.0),
        (5, (3, 6), 2.0),
        (5, (5,), 4.0),
    ]


def test_the_first_tokens_of_a_source() -> None:
    kv = torch.arange(2 * 2 * 6 * 1 * 2.0).view(2, 2, 6, 1, 2)
    source = HeldSource(kv)
    for num_tokens, sizes in ((2, [2]), (4, [3, 1]), (6, [3, 3])):
        leading = LeadingTokens(source, num_tokens)
        leading.start(1)
        runs = leading.take(1)
        assert [one.num_tokens for one in runs] == sizes
        assert torch.equal(torch.cat([one.k for one in runs]), kv[1, 0, :num_tokens])
    assert leading.name == "held[:6]"
    leading.close()
    assert source.closed == 1


@pytest.mark.parametrize("kind", ["exact", "lossy", "shared"])
def test_kv_that_reaches_into_the_question_is_cut_whatever_it_is(desk: Desk, kind: str) -> None:
    """331 tokens, 11 of them of the question: the last tier loses them."""
    prompt = Prompt((PRELUDE, ONE, ASK))
    source = HeldSource(torch.zeros(4, 2, 331, 1, 2))
    plan = Plan(prompt.token_ids, prefix=source, keep=RetainedPrefix(332))
    given = Planned(plan, tiers={"memory": 300, "disk": 31})
    request = Request("1", prompt, techniques=(Steer(((30, 2.0),)),))
    found = desk.steer.refine(request, _counted(given, kind))
    assert (found.plan.num_prefix, getattr(found, kind)) == (320, 320)
    assert found.exact + found.lossy + found.shared == 320
    assert found.tiers == {"memory": 300, "disk": 20}
    assert found.plan.keep == RetainedPrefix(320)
    assert found.plan.scale_from == 320


def test_of_an_exact_and_a_lossy_part_the_lossy_one_is_cut() -> None:
    """331 tokens to 320. What a sibling gave after the prefix stays."""
    source, after = (HeldSource(torch.zeros(4, 2, size, 1, 2)) for size in (331, 9))
    plan = Plan(tuple(range(345)), prefix=source)
    found = reused_before(Planned(plan, exact=300, lossy=31), 320)
    assert (found.exact, found.lossy) == (300, 20)
    found = reused_before(Planned(plan, exact=300, shared=31), 320)
    assert (found.exact, found.shared) == (300, 20), "shared before, and stored"
    plan = replace(plan, stored=(StoredRun(331, after),))
    found = reused_before(Planned(plan, exact=331, shared=9), 320)
    assert (found.exact, found.shared) == (320, 9)


def _counted(planned: Planned, kind: str) -> Planned:
    """The plan with its 331 reused tokens counted as that kind."""
    return replace(
        planned,
        exact=331 * (kind == "exact"),
        lossy=331 * (kind == "lossy"),
        shared=331 * (kind == "shared"),
    )


# --- steered texts in blended prompts: an experiment ---------------------------------------------


def chosen(scales: Iterable[ColumnScale]) -> set[tuple[int, int]]:
    """Every layer and column that is scaled."""
    return {(scale.layer, column) for scale in scales for column in scale.columns}


def store_steered(
    desk: Desk, model: LoadedModel, document: Segment, recipe: SteerRecipe
) -> set[tuple[int, int]]:
    """What `kdn ingest --steer` does for one document; the columns that were chosen."""

    def captured(plan: Plan) -> torch.Tensor:
        kv: torch.Tensor = run(model, plan).captured
        return kv

    decoder = model.decoder
    shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
    heads = [some_tokens(8, 200, seed=seed) for seed in (11, 12)]
    edited = edit_text(
        captured, shape.num_layers, recipe, heads, PRELUDE.token_ids, document.token_ids
    )
    prompt = Prompt((PRELUDE, document, ASK))
    for block in edited_blocks(edited, prompt, shape, decoder.fingerprint, recipe, ""):
        desk.store.put(block, CODECS["lossless"])
    return chosen(edited.scales)


def planned(
    desk: Desk, *options: object, segments: tuple[Segment, ...] = (PRELUDE, ONE, TWO, TOLD, ASK)
) -> Planned:
    found = desk.stack.plan(Request("1", Prompt(segments), techniques=options))
    for run_ in found.plan.stored:
        run_.source.close()
    if found.plan.prefix is not None:
        found.plan.prefix.close()
    return found


def test_a_steered_text_is_blended_with_its_columns_where_it_now_stands(
    desk: Desk, tiny: LoadedModel
) -> None:
    """It was steered at position 20 and stands at 320: so do its columns.  No key of it is exact."""
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3, combine="union")
    desk.ask(segments=(PRELUDE, ONE, ASK))
    desk.ask(segments=(PRELUDE, TWO, ASK))
    store_steered(desk, tiny, TWO, recipe)
    found = planned(desk, Blend(0.25), Steer(recipe=recipe))
    assert (found.exact, found.moved, found.blended) == (320, ((320, 420),), 75)
    columns = {column for scale in found.plan.scale for column in scale.columns}
    assert 30 <= len(columns) <= 100
    assert min(columns) >= 324, "four sinks"
    assert max(columns) < 420
    assert {scale.factor for scale in found.plan.scale} == {4}
    keep = found.plan.keep
    assert keep is not None
    assert (keep.num_tokens, keep.recipe.causes) == (0, (Cause.BLEND, Cause.STEER))
    plain = planned(desk, Blend(0.25))
    assert (plain.moved, plain.plan.scale) == (((320, 420),), ())
    blended, _ = desk.ask(Blend(0.25))
    steered, usage = desk.ask(Blend(0.25), Steer(recipe=recipe))
    assert usage.blended == 75
    assert steered != pytest.approx(blended, abs=1e-4)
    again, _ = desk.ask(Blend(0.25))
    assert again == pytest.approx(blended, abs=1e-6), "nothing of it stays behind"
    assert desk.num_stored(PRELUDE, ONE, TWO) == 320


def test_the_exact_prefix_ends_where_the_first_steered_text_begins(
    desk: Desk, tiny: LoadedModel
) -> None:
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3)
    desk.ask(segments=(PRELUDE, ONE, ASK))
    store_steered(desk, tiny, ONE, recipe)
    found = planned(desk, Blend(0.25), Steer(recipe=recipe))
    assert (found.exact, found.moved) == (20, ((20, 320),))
    other = planned(desk, Blend(0.25), Steer(recipe=replace(recipe, weight=5)))
    assert (other.exact, other.moved) == (320, ()), "another recipe has steered nothing"


def test_a_text_that_only_begins_like_a_steered_one_is_blended_as_it_is(
    desk: Desk, tiny: LoadedModel
) -> None:
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3, combine="union")
    other = Segment(Role.DOCUMENT, (*TWO.token_ids[:60], *some_tokens(40, 200, seed=31)))
    segments = (PRELUDE, ONE, other, TOLD, ASK)
    desk.ask(segments=(PRELUDE, ONE, ASK))
    desk.ask(segments=(PRELUDE, other, ASK))
    store_steered(desk, tiny, TWO, recipe)
    found = planned(desk, Blend(0.25), Steer(recipe=recipe), segments=segments)
    assert (found.exact, found.moved, found.blended) == (320, ((320, 420),), 75)
    assert found.plan.scale == ()


@pytest.mark.parametrize("blend", [(), (Blend(0.0),)])
def test_the_beginning_of_a_steered_text_is_another_text(
    desk: Desk, tiny: LoadedModel, blend: tuple[Blend, ...]
) -> None:
    """60 of the 100 tokens that were steered count where they were steered as a text of their own."""
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3, combine="union")
    beginning = Segment(Role.DOCUMENT, TWO.token_ids[:60])
    segments, options = (PRELUDE, beginning, TOLD, ASK), (*blend, Steer(recipe=recipe))
    store_steered(desk, tiny, TWO, recipe)
    assert planned(desk, *options, segments=segments).plan.scale == ()
    store_steered(desk, tiny, beginning, recipe)
    found = planned(desk, *options, segments=segments)
    columns = [column for scale in found.plan.scale for column in scale.columns]
    assert 20 < max(columns) < 80


@pytest.mark.parametrize("blend", [(), (Blend(0.0),)])
def test_texts_whose_first_blocks_are_alike_have_columns_of_their_own(
    desk: Desk, tiny: LoadedModel, blend: tuple[Blend, ...]
) -> None:
    """Both have 300 tokens and share 256, one block; a third text is that block alone."""
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3, combine="union")
    shared = ONE.token_ids[:256]
    texts = [
        Segment(Role.DOCUMENT, (*shared, *some_tokens(44, 200, seed=seed))) for seed in (31, 32)
    ]
    made = [store_steered(desk, tiny, text, recipe) for text in texts]
    first, second = ({one for one in own if one[1] < 276} for own in made)
    assert first != second, "what is chosen in the block depends on what follows it"
    options = (*blend, Steer(recipe=recipe))
    plans = [planned(desk, *options, segments=(PRELUDE, text, TOLD, ASK)).plan for text in texts]
    assert [chosen(plan.scale) for plan in plans] == made
    beginning = Segment(Role.DOCUMENT, shared)
    assert planned(desk, *options, segments=(PRELUDE, beginning, TOLD, ASK)).plan.scale == ()


def test_the_store_is_asked_about_no_text_that_was_not_steered(
    desk: Desk, tiny: LoadedModel
) -> None:
    """Fifty documents end in the prompt and one was steered: the prefix, and this one, are looked for."""
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3)
    store_steered(desk, tiny, ONE, recipe)
    more = [Segment(Role.DOCUMENT, some_tokens(4, 200, seed=40 + one)) for one in range(49)]
    before = desk.store.stat().lookups
    found = planned(desk, Steer(recipe=recipe), segments=(PRELUDE, ONE, *more, ASK))
    assert (found.plan.num_prefix, found.lossy) == (320, 320)
    assert desk.store.stat().lookups - before == 2
    other = planned(desk, Steer(recipe=recipe), segments=(PRELUDE, *more, ASK))
    assert (other.plan.num_prefix, other.plan.scale) == (0, ())
    assert desk.store.stat().lookups - before == 3, "the prefix alone"


@pytest.mark.parametrize(("begins", "taken"), [(320, 320), (319, 0)])
def test_a_steered_text_is_not_taken_where_an_adapter_has_begun(
    desk: Desk, tiny: LoadedModel, begins: int, taken: int
) -> None:
    """It was made without the adapter; its last row is the one at position 319."""
    recipe = SteerRecipe(desk.fingerprint, weight=4, share=0.3)
    store_steered(desk, tiny, ONE, recipe)
    shape, own = tiny.decoder.config.kv_shape("float32"), desk.fingerprint
    steer = SteerReuse(desk.store, shape, lambda _: own, invoked=lambda _: Invoked(begins, own))
    request = Request("1", Prompt((PRELUDE, ONE, ASK)), techniques=(Steer(recipe=recipe),))
    plan = steer.refine(request, Planned(Plan(request.prompt.token_ids))).plan
    assert plan.num_prefix == taken
    if plan.prefix is not None:
        plan.prefix.close()
    steer.close()


def test_factors_that_lie_in_v_are_not_blended(desk: Desk) -> None:
    literal = SteerRecipe(desk.fingerprint, literal=True)
    with pytest.raises(BadInput, match="hold its factors in V"):
        planned(desk, Blend(0.25), Steer(recipe=literal))
    some_heads = replace(literal, heads=(0,))
    assert planned(desk, Blend(0.25), Steer(recipe=some_heads)).exact == 0
