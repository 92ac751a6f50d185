"""Which tier for blended KV, by hand: 10 ms a token, 1,000 bytes a token, a dollar a second."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from kdn.cost import (
    Hiding,
    PairJct,
    PriceSheet,
    Seconds,
    Speed,
    Usd,
    Workload,
    cheapest_hiding,
    hidings,
)
from kdn.cost.sheet import TierPrice
from kdn.cost.units import BytesPerSecond, PerByteHour, PerHour
from kdn.errors import BadInput
from tests.cli.program import kdn as invoke

SPEED = Speed(PairJct(0.0, 0.01, 0.0), decode_token_s=0.01, token_bytes=1000)


def tier(name: str, storage: float, bytes_per_s: float) -> TierPrice:
    return TierPrice(name, PerByteHour(storage), BytesPerSecond(bytes_per_s))


SHEET = PriceSheet(
    "test",
    dt.date(2026, 11, 1),
    PerHour(3600.0),
    "gpu",
    "by hand",
    {
        "memory": tier("memory", 9e-6, 1e8),
        "disk": tier("disk", 2e-6, 1e6),
        "far": tier("far", 1e-6, 2e5),
    },
)
WORK = Workload(context_tokens=1000, uses=2, prompt_tokens=50)


def test_the_cheapest_tier_that_hides() -> None:
    """1,000,000 bytes: 0.01 s, 1 s, 5 s. 15 % of 1,000 tokens and a prompt of 50 are recomputed in 2 s."""
    found = {one.tier: one for one in hidings(WORK, SPEED, SHEET, 0.15)}
    assert found["disk"].recompute == Seconds(2.0)
    assert [one.load.value for one in found.values()] == pytest.approx([0.01, 1.0, 5.0])
    assert [one.hides for one in found.values()] == [True, True, False]
    assert found["disk"].usd.value == pytest.approx(2.0), "a million bytes for an hour"
    assert found["disk"].free_ratio == pytest.approx(0.1)
    chosen = cheapest_hiding(list(found.values()))
    assert chosen is found["disk"]


def test_a_higher_ratio_hides_a_slower_tier() -> None:
    chosen = cheapest_hiding(hidings(WORK, SPEED, SHEET, 0.5))
    assert chosen is not None
    assert chosen.tier == "far"


def test_if_none_hides_the_fastest() -> None:
    slow = [
        Hiding(name, Seconds(load), Seconds(0.1), Usd(usd), 1.0)
        for name, load, usd in (("dear", 1.0, 9.0), ("cheap", 2.0, 1.0))
    ]
    assert cheapest_hiding(slow) is slow[0]
    assert cheapest_hiding([]) is None


def test_a_share_beyond_all_is_refused() -> None:
    with pytest.raises(BadInput, match="0 to 1"):
        hidings(WORK, SPEED, SHEET, 1.5)


def test_the_command_names_the_choice(tmp_path: Path) -> None:
    asked = ("cost", "advise", "--blend", "0.15")
    assert "for blends at 15%: memory" in invoke(tmp_path, *asked).out
    tiers = invoke(tmp_path, *asked, "--json").json["tiers"]
    assert [one["tier"] for one in tiers if one["blend"]["chosen"]] == ["memory"]
