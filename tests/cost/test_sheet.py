"""Price sheets: what ships is sound, and what is wrong is said plainly."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from kdn.cost import load_sheet, load_speed
from kdn.cost.tables import shipped
from kdn.errors import BadInput

GOOD = """
date = 2026-01-02
[gpu]
name = "X"
usd_per_hour = 2.0
source = "a page"
[tiers.disk]
usd_per_gb_month = 0.73
gb_per_s = 2.0
source = "another page"
"""


def sheet(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shipped("prices"))
def test_shipped_sheets_are_sound_and_say_their_sources(name: str) -> None:
    found = load_sheet(name)
    assert found.gpu_source
    assert all(tier.source for tier in found.tiers.values())


@pytest.mark.parametrize("name", shipped("speeds"))
def test_shipped_speeds_are_sound(name: str) -> None:
    assert load_speed(name).context(1000, 10).value > 0


def test_a_sheet_of_ones_own(tmp_path: Path) -> None:
    found = load_sheet(sheet(tmp_path, GOOD))
    assert found.gpu.value == 2.0
    assert found.tier("disk").storage.value == pytest.approx(1e-3 / 1e9)  # 0.73 over 730 hours


def test_own_hardware_by_amortisation_and_power(tmp_path: Path) -> None:
    """8,760 USD over a year at half use is 2 USD an hour; 500 W at 0.2 USD are 0.1 more."""
    own = GOOD.replace(
        "usd_per_hour = 2.0",
        "bought_usd = 8760.0\nwritten_off_years = 1.0\nused_share = 0.5\n"
        "power_watts = 500.0\nusd_per_kwh = 0.2",
    )
    assert load_sheet(sheet(tmp_path, own)).gpu.value == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("usd_per_hour = 2.0", "", "price gpu.bought_usd is missing"),
        (
            "usd_per_gb_month",
            "usd_per_gib_fortnight",
            "price tiers.disk.usd_per_gb_month is missing",
        ),
        (
            "gb_per_s = 2.0",
            "gb_per_s = 2.0\nusd_per_mile = 3",
            "tiers.disk.usd_per_mile is unknown",
        ),
        ("0.73", "-0.73", "expected 0 to 1000"),
        ("0.73", "nan", "expected 0 to 1000"),
        ("0.73", '"cheap"', "write a number"),
        ("gb_per_s = 2.0", "gb_per_s = 0.0", "expected 1e-06"),
        ('source = "another page"', "", "say where the price is from"),
        ("date = 2026-01-02", "", "date is missing"),
        ("date = 2026-01-02", "date = 2026", "date is missing"),
        ("[tiers.disk]", "[other.disk]", "[tiers] is missing"),
        ("date", "date = = 3", "not a TOML file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, old: str, new: str, why: str) -> None:
    with pytest.raises(BadInput) as refused:
        load_sheet(sheet(tmp_path, GOOD.replace(old, new)))
    assert why in str(refused.value)
    assert "price sheet mine" in str(refused.value)


def test_old_prices_are_said_to_be_old(tmp_path: Path) -> None:
    found = load_sheet(sheet(tmp_path, GOOD))
    assert found.warning(dt.date(2026, 12, 31)) is None
    old = found.warning(dt.date(2027, 1, 3))
    assert old is not None
    assert "366 days ago" in old
    assert "in the future" in (found.warning(dt.date(2025, 1, 1)) or "")


def test_an_unknown_sheet_or_tier_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no price sheet 'moon'; there are aws-h100"):
        load_sheet("moon")
    with pytest.raises(BadInput, match="no price for tier 'tape'; it has disk"):
        load_sheet(sheet(tmp_path, GOOD)).tier("tape")
    with pytest.raises(BadInput, match="cannot be read"):
        load_sheet(tmp_path / "absent.toml")
