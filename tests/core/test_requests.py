"""Requests, their options, and the account of where tokens came from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from kdn.core import Blend, Planned, Prefix, Prompt, Request, Role, Sampling, Segment, Usage
from kdn.core.plans import Plan
from kdn.errors import BadInput

PROMPT = Prompt((Segment(Role.QUESTION, (1, 2)),))


def test_by_default_a_request_is_greedy_exact_and_reuses() -> None:
    request = Request("r", PROMPT)
    assert (request.sampling.temperature, request.reuse, request.techniques) == (0.0, True, ())
    assert request.option(Blend) is None
    assert request.option(Prefix) is None


def test_options_replace_those_of_their_class_and_leave_the_others() -> None:
    request = Request("r", PROMPT, techniques=(Blend(0.1), Prefix(max_kl=0.5)))
    assert request.option(Blend) == Blend(0.1)
    changed = request.using(Blend(0.3, "contracts"))
    assert changed.option(Blend) == Blend(0.3, "contracts")
    assert changed.option(Prefix) == Prefix(max_kl=0.5)
    assert changed.without(Blend, Prefix).techniques == ()
    assert request.techniques == (Blend(0.1), Prefix(max_kl=0.5)), "requests do not change"


def test_requests_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Request("r", PROMPT).salt = "x"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Sampling().seed = 1  # type: ignore[misc]


def test_cached_tokens_are_all_that_was_not_computed_for_the_request() -> None:
    usage = Usage(100, 5, exact=40, blended=20, shared=10, lossy=5, recomputed=25)
    assert usage.cached_tokens == 75
    assert usage.cached_tokens + usage.recomputed == usage.prompt_tokens


def test_a_plan_without_reuse_counts_nothing() -> None:
    planned = Planned(Plan((1, 2)))
    assert (planned.exact, planned.blended, planned.shared, planned.lossy) == (0, 0, 0, 0)
    assert planned.tiers == planned.levels == {}


@pytest.mark.parametrize("salt", ["\ud800", "a\udfffb"])
def test_a_salt_that_has_no_bytes_is_refused_in_one_line(salt: str) -> None:
    with pytest.raises(BadInput, match="holds half a surrogate pair; use valid"):
        Request("r", PROMPT, salt=salt)


def test_a_salt_may_be_as_long_as_a_header_has_room_for() -> None:
    assert Request("r", PROMPT, salt="é" * 4096).salt[0] == "é"
    with pytest.raises(BadInput, match="the salt holds 4097 characters; use one of 4096 at most"):
        Request("r", PROMPT, salt="x" * 4097)
