"""What blending promises whatever is chosen: ratio 1 is a full prefill, layer 0 never deviates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdn.core import ALL_ROWS, LayerView, Plan, StoredRun, TokenIds
from kdn.model import LoadedModel
from kdn.reuse.blend import (
    AnchoredRows,
    AttendedRows,
    BlendLayout,
    BlendRule,
    Deviation,
    Leading,
    Naive,
    RandomRows,
)
from kdn.reuse.blend.recomputed_rows import deviation
from tests.engine.runs import HeldSource, Ran, load_tiny, run, some_tokens

RULES: dict[str, BlendRule] = {
    "asked": AttendedRows(),
    "anchors": AnchoredRows(span=8),
    "v": Deviation("v"),
    "k": Deviation("k"),
    "kv gradual": Deviation("kv", gradual=True),
    "drawn": RandomRows(),
    "leading": Leading(),
}
PRELUDE = some_tokens(10, 200, seed=7)
QUESTION = some_tokens(12, 200, seed=8)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    """Six layers, so that checks, gradual filtering and looks have layers to work in."""
    return load_tiny(tiny_model("llama", num_hidden_layers=6), model_cache)


@dataclass
class Blended:
    """A prompt of chunks: a prelude, the chunks, a question; the first chunk is an exact prefix."""

    model: LoadedModel
    chunks: list[TokenIds]
    missing: tuple[int, ...] = ()
    tokens: TokenIds = field(init=False)
    full: Ran = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = PRELUDE + tuple(t for c in self.chunks for t in c) + QUESTION
        self.full = run(self.model, Plan(self.tokens))

    def spans(self) -> list[tuple[int, int]]:
        found, at = [], len(PRELUDE)
        for chunk in self.chunks:
            found.append((at, at + len(chunk)))
            at += len(chunk)
        return found

    def layout(self) -> BlendLayout:
        spans = self.spans()
        kept = tuple(s for i, s in enumerate(spans) if i and i not in self.missing)
        return BlendLayout(len(self.tokens), spans[0][1], kept, spans[-1][1])

    def base(self, junk: float | None = None) -> Plan:
        runs = []
        for (start, stop), chunk in zip(self.spans(), self.chunks, strict=True):
            if (start, stop) in self.layout().chunks:
                alone = run(self.model, Plan(PRELUDE + chunk)).captured[:, :, len(PRELUDE) :]
                kv = alone if junk is None else torch.full_like(alone, junk)
                runs.append(StoredRun(start, HeldSource(kv)))
        prefix = HeldSource(self.full.captured[:, :, : self.layout().num_prefix])
        rows = (ALL_ROWS,) * self.model.decoder.config.num_layers
        return Plan(self.tokens, prefix=prefix, stored=tuple(runs), rows=rows)

    def plan(self, rule: BlendRule, ratio: float, junk: float | None = None) -> Plan:
        layout = self.layout()
        return rule(self.base(junk), layout, layout.budget(ratio))


def blended_error(case: Blended, rule: BlendRule, ratio: float, junk: float | None = None) -> float:
    return float(
        (run(case.model, case.plan(rule, ratio, junk)).logits - case.full.logits).abs().max()
    )


def three_chunks(model: LoadedModel) -> Blended:
    return Blended(model, [some_tokens(40, 200, seed=i) for i in range(3)])


@pytest.mark.parametrize("name", RULES)
def test_at_ratio_one_a_blend_over_junk_is_a_full_prefill(name: str, tiny: LoadedModel) -> None:
    assert blended_error(three_chunks(tiny), RULES[name], 1.0, junk=3.0) < 1e-4


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("sizes", "missing"),
    [
        ((30, 1, 20), ()),
        ((20, 30, 25, 10), (2,)),
        ((20, 30, 25, 10), (1, 2)),
        ((1, 1, 1), ()),
        ((5, 9, 7), (2,)),
    ],
    ids=[
        "a chunk of one",
        "a gap in the middle",
        "a lone late chunk",
        "all of one",
        "last missing",
    ],
)
def test_whatever_is_missing_ratio_one_is_exact_and_less_is_not_far(
    name: str, sizes: tuple[int, ...], missing: tuple[int, ...], tiny: LoadedModel
) -> None:
    chunks = [some_tokens(n, 200, seed=i) for i, n in enumerate(sizes)]
    case = Blended(tiny, chunks, missing)
    assert blended_error(case, RULES[name], 1.0, junk=-2.0) < 1e-4
    assert torch.isfinite(run(tiny, case.plan(RULES[name], 0.3)).logits).all()


def test_duplicate_chunks_and_other_orders_are_prompts_like_any(tiny: LoadedModel) -> None:
    one, two = some_tokens(24, 200, seed=1), some_tokens(24, 200, seed=2)
    for chunks in ([one, two, two], [two, one, two], [one, one, one]):
        assert blended_error(Blended(tiny, chunks), AttendedRows(), 1.0, junk=5.0) < 1e-4


def test_layer_zero_does_not_deviate_and_a_later_one_does(tiny: LoadedModel) -> None:
    """K and V of layer 0 depend on the token alone, once position is taken off."""
    case = three_chunks(tiny)
    most: list[Tensor] = []

    def watch(view: LayerView) -> None:
        reused = torch.isin(view.rows, case.layout().reused)
        most.append(deviation(view, "kv")[reused].max())

    everyone = Deviation(check=6)  # no layer checks, so every row is computed and looked at
    plan = replace(case.plan(everyone, 0.5), observers=(watch,))
    run(tiny, plan)
    assert most[0] < 1e-9
    assert all(value > 1e-3 for value in most[1:])


def test_a_full_prefill_at_home_does_not_deviate_at_all(tiny: LoadedModel) -> None:
    """Stored KV that is right already: chunks taken from this very prompt."""
    case = three_chunks(tiny)
    spans = case.layout().chunks
    runs = tuple(StoredRun(a, HeldSource(case.full.captured[:, :, a:b])) for a, b in spans)
    base = replace(case.base(), stored=runs)
    for rule in (Naive(), *RULES.values()):
        logits = run(tiny, rule(base, case.layout(), 20)).logits
        assert (logits - case.full.logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["asked", "anchors", "drawn", "leading"])
def test_a_rule_computes_as_many_rows_as_it_was_paid_for(name: str, tiny: LoadedModel) -> None:
    case = three_chunks(tiny)
    plan = case.plan(RULES[name], 0.25)
    while plan.then is not None:
        run_look(tiny, plan)
        plan = plan.then()
    first = plan.rows[0]
    assert hasattr(first, "positions")
    assert len(first.positions) == 20 + case.layout().forced.numel(), (
        "a quarter of 80, and the question"
    )
    assert not set(first.positions) & set(range(case.layout().num_prefix))


def run_look(model: LoadedModel, plan: Plan) -> None:
    run(model, replace(plan, then=None))


def test_leading_takes_the_same_depth_of_every_chunk(tiny: LoadedModel) -> None:
    case = three_chunks(tiny)
    first = case.plan(Leading(), 0.1).rows[0]
    assert first.positions[:8] == (50, 51, 52, 53, 90, 91, 92, 93)  # type: ignore[union-attr]


def test_recomputing_what_the_question_reads_is_closer_than_recomputing_nothing(
    tiny: LoadedModel,
) -> None:
    case = three_chunks(tiny)
    naive = blended_error(case, Naive(), 0)
    assert blended_error(case, AttendedRows(), 0.5) < naive


def test_a_budget_is_rounded_up_and_never_exceeds_the_chunks() -> None:
    layout = BlendLayout(100, 10, ((10, 40), (50, 60)), 60)
    assert [layout.budget(r) for r in (0.0, 0.01, 0.5, 1.0)] == [0, 1, 20, 40]
    assert layout.forced.tolist() == [*range(40, 50), *range(60, 100)]


def test_a_look_that_ends_early_is_followed_by_the_same_mend_as_a_whole_one(
    tiny: LoadedModel,
) -> None:
    """Looked at are layers 3 and 5, or 3 alone; the twin goes through all six layers."""
    case = three_chunks(tiny)
    for every in (1, 2, 3):
        short = case.plan(AttendedRows(every=every), 0.2)
        whole = replace(case.plan(AttendedRows(every=every), 0.2), rows=case.base().rows)
        assert short.rows != whole.rows
        ended, through = run(tiny, short), run(tiny, whole)
        assert torch.equal(ended.logits, through.logits)
        columns = case.layout().num_tokens - case.layout().num_prefix
        assert torch.equal(ended.kv.suffix.k[:, :, :columns], through.kv.suffix.k[:, :, :columns])
        assert torch.equal(ended.kv.suffix.v[..., :columns], through.kv.suffix.v[..., :columns])
