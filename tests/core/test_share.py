"""The option of sharing: what it may say, and that a request carries one at most."""

from __future__ import annotations

import pytest

from kdn.core import Blend, Prompt, Request, Role, Segment, Share, ShareConfig
from kdn.errors import BadInput

REQUEST = Request("r", Prompt((Segment(Role.QUESTION, (1, 2, 3)),)))


def test_the_default_of_an_option_and_of_settings_is_the_best_way() -> None:
    assert (Share().mode, Share().max_kl, Share().within_s) == ("best", None, None)
    assert (ShareConfig().mode, ShareConfig().max_kl) == ("best", 0.05)


def test_a_request_carries_one_option_of_a_kind() -> None:
    shared = REQUEST.using(Share("best"), Blend(0.1)).using(Share("exact"))
    assert shared.option(Share) == Share("exact")
    assert shared.option(Blend) == Blend(0.1)
    assert shared.without(Share).option(Share) is None


@pytest.mark.parametrize("mode", ["some", "", None, 3])
def test_a_mode_that_there_is_not_is_refused(mode: object) -> None:
    with pytest.raises(BadInput, match="it can be exact, published or best"):
        Share(mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-1, 0, float("nan"), float("inf"), "x", True])
@pytest.mark.parametrize("name", ["max_kl", "within_s"])
def test_limits_are_finite_numbers_above_0(name: str, limit: object) -> None:
    with pytest.raises(BadInput, match=f"{name} must be a finite number above 0"):
        Share(**{name: limit})  # type: ignore[arg-type]


def test_limits_may_be_whole_numbers() -> None:
    share = Share("published", 1, 2)
    assert (share.max_kl, share.within_s) == (1, 2)
