"""Which KV outlives a request: ten shared tokens, three of a question, an answer of four."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdn.clock import ManualClock
from kdn.core import (
    Cause,
    KvShape,
    Plan,
    Planned,
    Prompt,
    Recipe,
    Request,
    RetainedPrefix,
    Retention,
    Role,
    Segment,
)
from kdn.engine import Capture, EngineLimits
from kdn.engine.kv import (
    drop_handed_over,
    family_name,
    has_answer_block,
    retained_answer,
    retained_blocks,
    retained_prompt,
    retains_answer,
    shared_tokens,
    wanted_capture,
)
from kdn.engine.request import Intake, RunningRequest, RunningStream
from kdn.model import LoadedModel
from tests.engine.runs import HeldSource, load_tiny, some_tokens

SHAPE = KvShape(num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32")
DOCUMENT, QUESTION = tuple(range(10, 20)), (5, 6, 7)
PROMPT = Prompt((Segment(Role.DOCUMENT, DOCUMENT), Segment(Role.QUESTION, QUESTION)))
LOSSY = Recipe((Cause.CODEC,), "lossy")


def request(retention: Retention = Retention.SHARED, **options: object) -> Request:
    return Request("a", PROMPT, retention=retention, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


def running(model: LoadedModel, asked: Request, plan: Plan | None = None) -> RunningRequest:
    """A prompt whose KV was noted: K of position p is p."""
    intake = Intake(model, EngineLimits(kv_bytes=1 << 28), ManualClock(), seed=0)
    made = intake.take(asked, RunningStream(lambda: None))
    plan = plan or Plan(PROMPT.token_ids)
    made.planned = Planned(plan)
    wanted = wanted_capture(asked, plan)
    if wanted is not None:
        made.capture = Capture(SHAPE, torch.float32, wanted[0], wanted[1] - wanted[0])
        at = torch.arange(wanted[0], 17)
        k = at[:, None, None].expand(-1, 1, 2).float()
        made.capture.note(0, at, k, -k)
    made.generated = [30, 31, 32, 33]
    return made


def test_the_last_segment_is_not_shared() -> None:
    assert shared_tokens(request()) == 10
    alone = Request("a", Prompt((Segment(Role.QUESTION, QUESTION),)))
    assert shared_tokens(alone) == 0


def test_a_family_is_a_beginning_a_tenant_and_an_adapter() -> None:
    other_question = Prompt((PROMPT.segments[0], Segment(Role.QUESTION, (9,))))
    assert family_name(request()) == family_name(replace(request(), prompt=other_question))
    assert family_name(request()) != family_name(request(salt="t"))
    assert family_name(request()) != family_name(request(adapter="x"))


@pytest.mark.parametrize(
    ("retention", "num_prefix", "limit", "noted"),
    [
        (Retention.NOTHING, 0, None, None),
        (Retention.SHARED, 0, None, (0, 10)),
        (Retention.SHARED, 4, None, (4, 10)),
        (Retention.SHARED, 10, None, None),
        (Retention.ALL, 10, None, (10, 13)),
        (Retention.ALL, 0, 6, (0, 6)),
        (Retention.SHARED, 0, 0, None),
    ],
)
def test_only_what_is_not_stored_and_may_be_is_noted(
    retention: Retention, num_prefix: int, limit: int | None, noted: tuple[int, int] | None
) -> None:
    source = HeldSource(torch.zeros(1, 2, num_prefix, 1, 2)) if num_prefix else None
    keep = RetainedPrefix(limit) if limit is not None else None
    plan = Plan(PROMPT.token_ids, prefix=source, keep=keep)
    assert wanted_capture(request(retention), plan) == noted


def test_asking_twice_gives_the_same_and_changes_nothing(tiny: LoadedModel) -> None:
    made = running(tiny, request(Retention.ALL))
    first, second = retained_prompt(made), retained_prompt(made)
    assert first is not None
    assert second is not None
    assert torch.equal(first.kv, second.kv)
    assert made.capture is not None
    assert retained_answer(made) is not None


def test_the_prompt_is_its_shared_part_and_the_answer_the_rest(tiny: LoadedModel) -> None:
    """The last token drawn was never computed: of four, three have KV."""
    made = running(tiny, request(Retention.ALL))
    prompt, answer = retained_prompt(made), retained_answer(made)
    assert prompt is not None
    assert answer is not None
    assert (prompt.start, prompt.token_ids, prompt.is_answer) == (0, DOCUMENT, False)
    assert prompt.kv[0, 0, :, 0, 0].tolist() == list(range(10))
    assert (answer.start, answer.token_ids) == (10, (*DOCUMENT, *QUESTION, 30, 31, 32))
    assert answer.is_answer
    assert answer.kv[0, 1, :, 0, 0].tolist() == [-10, -11, -12, -13, -14, -15]


def test_whole_blocks_of_a_question_are_left_before_its_answer_is(tiny: LoadedModel) -> None:
    """Ten shared tokens, 264 of a question and three of an answer: blocks of 256, and of 8 + 3."""
    question = some_tokens(264, 200)
    prompt = Prompt((PROMPT.segments[0], Segment(Role.QUESTION, question)))
    asked = replace(request(Retention.ALL), prompt=prompt)
    made = running(tiny, asked, Plan(prompt.token_ids))
    assert made.capture is not None
    blocks, answer = retained_blocks(made), retained_answer(made)
    assert blocks is not None
    assert answer is not None
    assert (blocks.start, len(blocks.token_ids), blocks.is_answer) == (10, 10 + 256, True)
    assert (answer.start, len(answer.token_ids), answer.is_answer) == (266, 274 + 3, True)


def test_what_was_handed_over_takes_no_memory_while_the_answer_grows(tiny: LoadedModel) -> None:
    """Of ten shared tokens and 264 of a question, 266 are left at the first token, and eight stay."""
    question = some_tokens(264, 200)
    prompt = Prompt((PROMPT.segments[0], Segment(Role.QUESTION, question)))
    asked = replace(request(Retention.ALL), prompt=prompt)
    made = running(tiny, asked, Plan(prompt.token_ids))
    assert made.capture is not None
    positions = torch.arange(274)
    rows = positions[:, None, None].expand(-1, 1, 2).float()
    made.capture.note(0, positions, rows, -rows)
    before = retained_blocks(made)
    assert before is not None

    drop_handed_over(made)
    assert (made.capture.start, made.capture.stop) == (266, 266 + 256)
    made.capture.note(0, torch.arange(274, 277), rows[:3] + 274, -rows[:3])
    answer = retained_answer(made)
    assert answer is not None
    assert (answer.start, len(answer.token_ids)) == (266, 274 + 3)
    assert answer.kv[0, 0, :, 0, 0].tolist() == list(range(266, 277))
    assert before.kv[0, 0, :, 0, 0].tolist() == list(range(10, 266)), "the store's view lives on"


def test_an_answer_is_due_when_its_block_is_full(tiny: LoadedModel) -> None:
    """Ten shared tokens and three of a question go before: 253 of 254 tokens have KV, and fill 10..266."""
    made = running(tiny, request(Retention.ALL))
    drop_handed_over(made)
    assert made.capture is not None
    assert (made.capture.start, made.capture.stop) == (10, 10 + 256)
    made.generated = [30] * 253
    assert not has_answer_block(made)
    made.generated = [30] * 254
    assert has_answer_block(made)
    blocks = retained_blocks(made)
    assert blocks is not None
    assert (blocks.start, len(blocks.token_ids), blocks.is_answer) == (10, 266, True)
    drop_handed_over(made)
    assert (made.capture.start, made.capture.stop) == (266, 266 + 256)
    assert not has_answer_block(made)
    assert retained_answer(made) is None, "all of it was handed over"
    assert not has_answer_block(running(tiny, request(Retention.SHARED)))


def test_a_capture_that_was_handed_over_whole_begins_empty() -> None:
    capture = Capture(SHAPE, torch.float32, start=5, num_tokens=300)
    capture.drop_before(4, 305)
    assert (capture.start, capture.stop) == (5, 5 + 512), "nothing lies before"
    capture.drop_before(305, 305)
    assert (capture.start, capture.stop) == (305, 305 + 256)
    rows = torch.ones(1, 1, 2)
    capture.note(0, torch.tensor([305]), rows, rows)
    assert capture.retained((0,) * 306, 305).kv[0, :, 0, 0, 0].tolist() == [1.0, 1.0]


def test_a_short_question_is_left_with_its_answer(tiny: LoadedModel) -> None:
    assert retained_blocks(running(tiny, request(Retention.ALL))) is None
    long = replace(request(), prompt=Prompt((Segment(Role.QUESTION, (3,) * 397),)))
    assert retained_blocks(running(tiny, long, Plan(long.prompt.token_ids))) is None


def test_an_answer_that_nobody_asked_to_retain_is_none(tiny: LoadedModel) -> None:
    made = running(tiny, request(Retention.SHARED))
    assert not retains_answer(made)
    assert retained_prompt(made) is not None
    assert retained_answer(made) is None


def test_a_plan_limits_what_outlives_it_and_names_its_recipe(tiny: LoadedModel) -> None:
    plan = Plan(PROMPT.token_ids, keep=RetainedPrefix(6, LOSSY))
    made = running(tiny, request(Retention.ALL), plan)
    prompt = retained_prompt(made)
    assert prompt is not None
    assert (len(prompt.token_ids), prompt.recipe) == (6, LOSSY)
    assert not retains_answer(made)


def test_nothing_is_retained_of_what_was_stored_already(tiny: LoadedModel) -> None:
    stored = HeldSource(torch.zeros(1, 2, 10, 1, 2))
    made = running(tiny, request(), Plan(PROMPT.token_ids, prefix=stored))
    assert made.capture is None
    assert retained_prompt(made) is None
    assert retained_answer(made) is None
