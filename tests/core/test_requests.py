"""Requests, their options, and the account of where tokens came from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from kdn.core import (
    Blend,
    Finish,
    FinishReason,
    Planned,
    Prefix,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Usage,
)
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


def test_a_salt_may_be_as_long_as_a_block_has_room_for() -> None:
    assert Request("r", PROMPT, salt="é" * 512).salt[0] == "é"
    with pytest.raises(BadInput, match="the salt has 1026 bytes; use one of 1024 at most"):
        Request("r", PROMPT, salt="é" * 513)


def test_a_salt_does_not_begin_as_a_sealed_one_does() -> None:
    with pytest.raises(
        BadInput, match=r"the salt '\\x01alice' begins with U\+0001, which kdn keeps"
    ):
        Request("r", PROMPT, salt="\x01alice")
    assert Request("r", PROMPT, salt="alice\x01").salt == "alice\x01"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"temperature": float("nan")},
            "temperature must be a finite number of at least 0, not nan",
        ),
        ({"temperature": float("inf")}, "temperature must be a finite"),
        ({"temperature": -0.1}, "temperature must be a finite"),
        ({"temperature": "0.5"}, "temperature must be a finite number of at least 0, not '0.5'"),
        ({"temperature": True}, "temperature must be a finite"),
        ({"temperature": 10**400}, "not a number of more than 128 bits"),
        ({"top_p": 1.5}, "top_p must be a finite number from 0 to 1, not 1.5"),
        ({"min_p": -1}, "min_p must be"),
        ({"top_k": 2.5}, "top_k must be a whole number of at least 0, not 2.5"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1, not 0"),
        ({"max_tokens": None}, "max_tokens must be"),
        ({"seed": 1 << 64}, "seed must be a whole number from -9223372036854775808"),
        ({"seed": -(1 << 63) - 1}, "seed must be"),
        ({"seed": 10**5000}, "seed must be"),
        ({"logprobs": -1}, "logprobs must be"),
        ({"stop": ("a", 5)}, "stop takes strings"),
        ({"stop": 5}, "stop takes a sequence, not 5"),
        ({"stop_token_ids": ("a",)}, "stop_token_ids must be a whole number"),
        ({"allowed": 5}, "allowed takes a sequence"),
        ({"logit_bias": {"a": 1.0}}, "a token of logit_bias must be"),
        (
            {"logit_bias": {1: float("nan")}},
            "a value of logit_bias must be a finite number, not nan",
        ),
        ({"logit_bias": [1]}, "logit_bias takes a mapping"),
    ],
)
def test_sampling_that_nobody_can_draw_by_is_refused_by_its_field(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        Sampling(**options)


def test_one_string_is_one_stop_string() -> None:
    assert Sampling(stop="END").stop == ("END",)  # type: ignore[arg-type]


def test_seeds_are_64_bits_with_and_without_a_sign() -> None:
    assert Sampling(seed=(1 << 64) - 1).seed == 18446744073709551615
    assert Sampling(seed=-(1 << 63)).seed == -9223372036854775808


def test_options_of_a_subclass_answer_for_their_class() -> None:
    """A site may hand over an option of its own that a technique takes for its own."""

    class SiteBlend(Blend):
        pass

    request = Request("r", PROMPT, techniques=(SiteBlend(0.2),))
    found = request.option(Blend)
    assert found is not None
    assert found.ratio == 0.2
    assert request.without(Blend).techniques == ()


def test_requests_made_of_one_another_share_the_prompt() -> None:
    """Guards and background prefills change a request; its tokens are never copied."""
    request = Request("r", PROMPT, adapter="a", salt="s", priority=3)
    changed = request.using(Blend(0.2))
    assert changed.prompt is request.prompt
    assert (changed.adapter, changed.salt, changed.priority) == ("a", "s", 3)
    assert changed == request.using(Blend(0.2)), "requests are values"
    assert changed != request


def test_a_finish_carries_held_back_text_and_the_stop_that_was_met() -> None:
    finish = Finish(FinishReason.STOP, Usage(3, 2), tail="ab", stop="\n")
    assert (finish.reason.value, finish.tail, finish.stop) == ("stop", "ab", "\n")
    assert [reason.value for reason in FinishReason] == ["stop", "length", "cancelled"]


def test_retention_is_named_as_the_settings_name_it() -> None:
    assert [Retention(name).name for name in ("nothing", "shared", "all")] == [
        "NOTHING",
        "SHARED",
        "ALL",
    ]
    assert Request("r", PROMPT).retention is Retention.SHARED


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf"), "half", True, 10**400])
def test_a_ratio_is_a_share(ratio: object) -> None:
    with pytest.raises(BadInput, match="it is a share, 0 to 1, of the reused tokens"):
        Blend(ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_kl": -1.0},
        {"max_kl": float("nan")},
        {"max_kl": "none"},
        {"load_within_s": 0},
        {"load_within_s": -3},
        {"load_within_s": float("inf")},
    ],
)
def test_limits_of_prefix_reuse_are_numbers_that_mean_something(limits: dict[str, object]) -> None:
    (name,) = limits
    with pytest.raises(BadInput, match=f"^{name} must be a finite number"):
        Prefix(**limits)  # type: ignore[arg-type]


def test_names_are_texts() -> None:
    with pytest.raises(BadInput, match="collection must be a text, not 3"):
        Blend(collection=3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the salt must be a text, not b'x'"):
        Request("r", PROMPT, salt=b"x")  # type: ignore[arg-type]
