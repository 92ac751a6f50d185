"""The planner is a fold: order, options, a technique made up here, and what a failing one costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
    Blend,
    Finish,
    Planned,
    Prompt,
    Recipe,
    Request,
    RetainedKV,
    Role,
    Sampling,
    Segment,
    Share,
    Token,
)
from kdn.engine import Engine, EngineLimits
from kdn.errors import BadInput
from kdn.model.attention import TorchAttention
from kdn.reuse import Stack, Technique
from kdn.trace import Recorder
from tests.engine.runs import load_tiny, some_tokens

PROMPT = Prompt((Segment(Role.QUESTION, (1, 2, 3)),))


@dataclass(frozen=True)
class Tagged:
    """Option of the technique below."""

    word: str


@dataclass
class Tag(Technique):
    """Made up: it counts tokens as shared and changes nothing that is computed."""

    name: str
    said: list[str] = field(default_factory=list)
    option: ClassVar[type[object] | None] = Tagged

    def cached_tokens(self, request: Request) -> int:
        return 2

    def refine(self, request: Request, planned: Planned) -> Planned:
        self.said.append(f"{self.name} refines {planned.shared}")
        return replace(planned, shared=planned.shared + 1)

    def retain(self, request: Request, retained: RetainedKV) -> RetainedKV:
        self.said.append(f"{self.name} retains {retained.recipe.detail}")
        return replace(retained, recipe=Recipe((), f"{retained.recipe.detail}{self.name}"))

    def background(self, request: Request) -> list[Request]:
        return [request.without(Tagged)]


class Everyone(Tag):
    """The same for every request; it keeps what is to be retained."""

    option = None

    def retain(self, request: Request, retained: RetainedKV) -> None:  # type: ignore[override]
        self.said.append(f"{self.name} stores {retained.recipe.detail}")


class Broken(Tag):
    """Fails at everything."""

    option = None

    def __init__(self, error: Exception) -> None:
        super().__init__("broken")
        self._error = error

    def cached_tokens(self, request: Request) -> int:
        raise self._error

    def refine(self, request: Request, planned: Planned) -> Planned:
        raise self._error

    def retain(self, request: Request, retained: RetainedKV) -> RetainedKV:
        raise self._error


def request(*options: object) -> Request:
    return Request("r", PROMPT, techniques=options)


def kv() -> RetainedKV:
    return RetainedKV(0, (1, 2, 3), torch.zeros(1, 2, 3, 1, 4), EXACT, is_answer=False)


def test_plans_are_refined_first_to_last_and_kv_is_retained_last_to_first() -> None:
    said: list[str] = []
    stack = Stack([Everyone("a", said), Tag("b", said), Tag("c", said)])
    assert stack.plan(request(Tagged("x"))).shared == 3
    stack.retain(request(Tagged("x")), kv())
    assert said == [
        "a refines 0",
        "b refines 1",
        "c refines 2",
        "c retains ",
        "b retains c",
        "a stores cb",
    ]


def test_a_technique_has_no_say_in_requests_without_its_option() -> None:
    said: list[str] = []
    stack = Stack([Everyone("a", said), Tag("b", said)])
    assert stack.plan(request()).shared == 1
    assert stack.plan(request(Blend(0.1))).shared == 1
    assert said == ["a refines 0"] * 2
    assert stack.background(request(Blend(0.1))) == [request(Blend(0.1))]
    assert stack.background(request(Tagged("x"))) == [request()] * 2


def test_requests_that_share_or_carry_an_option_are_noted_each_time_they_are_planned() -> None:
    noted: list[str] = []
    Stack([Everyone("a")], on_plan=lambda _: noted.append("shares")).plan(request())
    options = Stack([Tag("b")], on_plan=lambda _: noted.append("asks"))
    options.plan(request())
    options.plan(request(Share("exact")))  # as what computes documents in the background carries
    options.plan(replace(request(Tagged("x")), reuse=False))
    options.plan(request(Tagged("x")))
    options.plan(request(Tagged("x")))
    assert noted == ["shares", "asks", "asks"]


def test_a_technique_is_passed_by_while_what_it_needs_is_empty() -> None:
    said: list[str] = []
    needy = Everyone("a", said)
    needy.needs = pairs = dict[str, str]()
    stack = Stack([needy])
    assert stack.plan(request()).shared == 0
    pairs["sender"] = "receiver"
    assert stack.plan(request()).shared == 1
    assert said == ["a refines 0"]


def test_options_are_one_of_a_class_and_replace_each_other() -> None:
    both = request(Blend(0.1), Tagged("x"))
    assert both.option(Tagged) == Tagged("x")
    assert both.using(Tagged("y")).techniques == (Blend(0.1), Tagged("y"))
    assert both.without(Blend).techniques == (Tagged("x"),)
    assert request().option(Blend) is None


def test_what_a_failing_technique_costs_is_its_own_part() -> None:
    said: list[str] = []
    trace = Recorder()
    stack = Stack([Everyone("a", said), Broken(OSError("disk")), Tag("b", said)], trace=trace)
    asked = request(Tagged("x"))
    assert stack.plan(asked).shared == 2
    assert stack.cached_tokens(asked) == 2
    stack.retain(asked, kv())
    assert said == ["a refines 0", "b refines 1", "b retains "], "nothing is stored after a failure"
    assert stack.num_failures == trace.count("reuse.failed") == 3
    assert trace.events("reuse.failed")[0].fields["why"] == "OSError('disk')"


def test_a_trace_that_fails_as_well_costs_nothing_more() -> None:
    class Deaf(Recorder):
        def event(self, name: str, **fields: object) -> None:
            raise OSError("full")

    stack = Stack([Broken(RuntimeError("x"))], trace=Deaf())
    assert stack.plan(request()).plan.token_ids == (1, 2, 3)
    assert stack.num_failures == 1


def test_an_option_that_makes_no_sense_fails_the_request() -> None:
    with pytest.raises(BadInput, match="no such sender"):
        Stack([Broken(BadInput("no such sender"))]).plan(request())


def test_a_new_technique_is_one_class_and_one_line(
    tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    """The engine runs it and reports what it counted; it knows nothing of it."""
    model = load_tiny(tiny_model("llama"), model_cache, "float32")
    said: list[str] = []
    stack = Stack([Tag("new", said)])
    engine = Engine(
        model, TorchAttention(), stack, EngineLimits(1 << 28), SystemClock(), threaded=False
    )
    tokens = Segment(Role.QUESTION, some_tokens(9, 200, seed=1))
    shared: list[int] = []
    asked: tuple[tuple[object, ...], ...] = ((), (Tagged("x"),))
    for options in asked:
        stream = engine.submit(
            Request(
                str(len(shared)),
                Prompt((tokens, tokens)),
                Sampling(max_tokens=2, ignore_eos=True),
                techniques=options,
            )
        )
        while engine.step():
            pass
        *found, last = stream
        assert isinstance(last, Finish)
        assert all(isinstance(one, Token) for one in found)
        shared.append(last.usage.shared)
    engine.close()
    assert shared == [0, 1]
    assert said == ["new refines 0", "new retains "]
