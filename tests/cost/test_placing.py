"""Where a block is worth keeping and for how long, by hand; and a store that acts on it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

import kdn
from kdn.api.store import price_outlook
from kdn.config import load_config
from kdn.cost import PairJct, Placing, PriceSheet, Speed
from kdn.cost.sheet import TierPrice
from kdn.cost.units import BytesPerSecond, PerByteHour, PerHour, PerRequest
from kdn.store.policies import Rules, Use, make_policy
from kdn.testing import write_tiny_model
from tests.cli.program import kdn as invoke

SPEED = Speed(PairJct(0.0, 0.01, 0.0), decode_token_s=0.01, token_bytes=1000)


def sheet(**tiers: TierPrice) -> PriceSheet:
    """A machine of a dollar a second."""
    return PriceSheet("test", dt.date(2026, 11, 1), PerHour(3600.0), "gpu", "by hand", tiers)


def tier(name: str, storage: float = 0.0, bytes_per_s: float = 1e6, put: float = 0.0) -> TierPrice:
    return TierPrice(name, PerByteHour(storage), BytesPerSecond(bytes_per_s), put=PerRequest(put))


def test_a_block_is_written_where_one_use_repays_it() -> None:
    """101 tokens cost 1 dollar of prefill beyond the fixed part; 100,000 bytes load in 0.1 s."""
    placing = Placing(
        SPEED,
        sheet(
            near=tier("near"),
            dear=tier("dear", put=0.95),
            slow=tier("slow", bytes_per_s=5e4),
        ),
    )
    assert placing.pays("near", 0, 101, 100_000)
    assert not placing.pays("dear", 0, 101, 100_000), "0.95 to put, 0.9 saved"
    assert not placing.pays("slow", 0, 101, 100_000), "loads for two seconds"
    assert placing.pays("unheard of", 0, 101, 100_000), "no price, no opinion"


def test_it_is_kept_until_storage_has_cost_one_use() -> None:
    """0.9 dollars a use; 100,000 bytes at 0.0324 dollars a byte and hour are 0.9 dollars a second."""
    placing = Placing(SPEED, sheet(paid=tier("paid", storage=0.0324), free=tier("free")))
    assert placing.keep_for_s("paid", 0, 101, 100_000) == pytest.approx(1.0)
    assert placing.keep_for_s("free", 0, 101, 100_000) is None


def test_each_block_goes_when_its_own_time_is_over() -> None:
    """Blocks of 1 and 5 seconds; a use begins the time again."""

    def use(name: str, at_s: float) -> Use:
        return Use(name, 0, int(name[1:]), 10, at_s, "")  # type: ignore[arg-type]

    policy = make_policy("lru", Rules(ttl_of=lambda one: float(one.num_tokens)))
    policy.insert(use("a1", 0.0))
    policy.insert(use("b5", 0.0))
    assert policy.expired(0.9) == []
    policy.use(use("a1", 0.9))
    assert policy.expired(1.5) == []
    assert policy.expired(2.0) == ["a1"]
    assert policy.expired(2.0) == ["a1"], "until it is gone"
    policy.remove("a1")  # type: ignore[arg-type]
    assert policy.expired(6.0) == ["b5"]
    policy.check()


PRICES = """
date = 2026-11-01
[gpu]
name = "a CPU"
usd_per_hour = 1.0
source = "by hand"
[tiers.memory]
already_paid_for = true
gb_per_s = 8.0
source = "by hand"
[tiers.disk]
usd_per_gb_month = 0.08
usd_per_1000_puts = 100.0
gb_per_s = 1.0
source = "by hand"
"""


@pytest.mark.parametrize(("acts", "on_disk"), [("false", True), ("true", False)])
def test_the_store_writes_only_where_it_pays(tmp_path: Path, acts: str, on_disk: bool) -> None:
    """Ten cents for each write to the disk are never repaid by a tiny prompt."""
    (tmp_path / "prices.toml").write_text(PRICES)
    settings = f'[cost]\nprices = "{tmp_path / "prices.toml"}"\nenforce_prices = {acts}\n'
    (tmp_path / "kdn.toml").write_text(settings)
    model = write_tiny_model(tmp_path / "model", "llama")
    with kdn.open(model, config=load_config({}, home=tmp_path)) as service:
        service.generate("hello there, how are you?", sampling=kdn.Sampling(max_tokens=2))
        service.store.flush()
        stat = service.store.stat()
        assert stat.tiers["memory"].blocks > 0
        assert (stat.tiers["disk"].blocks > 0) is on_disk
        assert (stat.not_worth_writing > 0) is not on_disk
        service.check()


def test_what_acting_means_can_be_asked(tmp_path: Path) -> None:
    """Ten cents a write pay nowhere on this disk; memory is paid for, and keeps for ever."""
    (tmp_path / "prices.toml").write_text(PRICES)
    prices = f'[cost]\nprices = "{tmp_path / "prices.toml"}"\n'
    (tmp_path / "kdn.toml").write_text(prices + "enforce_prices = true\n")
    found = price_outlook(load_config({}, home=tmp_path), ("memory", "disk"))
    assert found["memory"] == {"pays": True, "keep_s": None}
    assert found["disk"]["pays"] is False
    assert invoke(tmp_path, "store", "stat", "--json").json["prices"] == found
    told = invoke(tmp_path, "store", "stat").out
    assert "memory  yes           ever" in told
    (tmp_path / "kdn.toml").write_text(prices)
    assert price_outlook(load_config({}, home=tmp_path), ("memory", "disk")) == {}
