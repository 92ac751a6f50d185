"""A call by hand: times on a link without queue, budgets, decode rules, and table against real pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scripts.rtc.measure import measure_codec
from tests.net.rtc.clip import codec, moving
from tests.net.rtc.table import made_table

from kdn.errors import BadConfig, BadInput
from kdn.net.rtc.call import Call, CallOutcome, Controller, Decision, Feedback, Link, run_call
from kdn.net.rtc.clips import Clip
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.kalman import KalmanGcc
from kdn.net.rtc.control.oracle import RateOracle, capacity_bps
from kdn.net.rtc.control.rivals import BbrLike, Copa, Fbra, Salsify
from kdn.net.rtc.loop import place_of, quality_of
from kdn.net.rtc.real_call import RealCall
from kdn.net.rtc.rows import DECODED, SKIPPED
from kdn.net.rtc.tables import RateTable, read_tables, write_tables
from kdn.net.rtc.worlds import held_out_links, random_link
from kdn.net.world import Flow, RateTrace, bulk, constant
from kdn.net.world.records import MS, SECOND


@dataclass
class Fixed:
    bps: float

    def decide(self, feedback: Feedback) -> Decision:
        return Decision(self.bps)


def fast(loss: float = 0.0) -> Link:
    return Link("fast", constant(50e6), delay_ms=20.0, loss=loss)


def test_a_picture_takes_its_pacing_and_its_way() -> None:
    """400 kbit/s: 2,000 bytes a picture, of which 5 headers of 28 take 140: level 3 (475 to 1,360 bytes)."""
    call = Call(made_table(), fast(), seconds=4.0)
    run_call(call, Fixed(400e3))
    frames = call.frames[20:80]
    assert (frames["fate"] == DECODED).all()
    assert (frames["count"] == 5).all()
    sizes = frames["bytes"]
    assert sizes.max() <= 2 * 2000 + 1
    assert float(sizes.mean()) == pytest.approx(2000, rel=0.12)
    # The last of five packets leaves after four gaps at 1.5 times the rate, and travels 20 ms and 5 us.
    took = (frames["t_decode"] - frames["t"]) / MS
    gaps = frames["bytes"] * 4 / 5 * 8 / 600
    assert took == pytest.approx(gaps + 20.0, abs=2.0)


def test_a_lost_packet_costs_its_share_of_quality() -> None:
    call = Call(made_table(), fast(0.1), seconds=20.0)
    run_call(call, Fixed(600e3))
    frames = call.frames[25:-30]
    hurt = frames[(frames["loss"] > 0.15) & (frames["loss"] < 0.25)]
    assert len(hurt) > 20
    assert hurt["damage"] == pytest.approx(0.1 * hurt["loss"] ** 1.5, abs=2e-3)
    assert (frames["fate"] == DECODED).mean() > 0.99


def test_damage_is_inherited_until_the_sender_knows() -> None:
    """Carry is 0.5: a picture after a damaged one, coded before the news, has half of the damage."""
    call = Call(
        made_table(), Link("slow news", constant(50e6), delay_ms=150.0, loss=0.03), seconds=20
    )
    run_call(call, Fixed(600e3))
    frames = call.frames
    table = call.table
    checked = 0
    for i in range(30, len(frames) - 30):
        before, now = frames[i - 1], frames[i]
        clean_run = all(frames[j]["damage"] == 0 for j in range(int(now["known"]), i - 1))
        if now["damage"] == 0 and before["damage"] > 0 and clean_run and now["known"] < i:
            row = place_of(i, len(table.sizes))
            clean = quality_of(table.ssim, row, int(now["level"]), 0.0)
            assert clean - now["quality"] == pytest.approx(0.5 * before["damage"])
            checked += 1
    assert checked > 3


def test_a_classical_codec_freezes_until_an_intra_picture() -> None:
    """Without repair packets one loss breaks the chain; the next whole intra picture repairs the picture."""
    call = Call(made_table(survives=False), fast(0.02), seconds=20.0)
    outcome = run_call(call, Fixed(600e3))
    frames = call.frames[:-10]
    broken = np.nonzero((frames["fate"] == SKIPPED) & (frames["count"] > 0))[0]
    assert len(broken) > 3
    for first in broken:
        if frames[first - 1]["fate"] != DECODED or not (frames["fate"][first:] == DECODED).any():
            continue
        again = first + int(np.argmax(frames["fate"][first:] == DECODED))
        assert frames[again]["intra"] == 1
    assert outcome.undecoded_share > 0.02


def test_repair_packets_mend_what_they_were_made_for() -> None:
    bare = run_call(Call(made_table(survives=False), fast(0.02), seconds=20.0), Fixed(600e3))
    table = made_table(survives=False, spare=0.3)
    repaired = run_call(Call(table, fast(0.02), seconds=20.0), Fixed(600e3))
    assert repaired.undecoded_share < 0.3 * bare.undecoded_share
    assert repaired.ssim_db < bare.ssim_db


def test_a_rate_above_the_link_fills_its_queue_and_then_loses() -> None:
    """1 Mbit/s, 20 packets of 1,500 bytes: 240 ms of queue, beside 25 ms of way."""
    link = Link("narrow", constant(1e6), queue_packets=20)
    outcome = run_call(Call(made_table(), link, seconds=20.0), Fixed(3e6))
    assert outcome.loss > 0.3
    assert 200 < outcome.p95_delay_ms < 420


def test_other_flows_share_the_bottleneck() -> None:
    alone = run_call(Call(made_table(), Link("own", constant(2e6)), seconds=15.0), Gcc())
    download = Flow("cubic", "not-ect", bulk(), in_ms=10.0)
    shared = Link("shared", constant(2e6), others=(download,))
    beside = run_call(Call(made_table(), shared, seconds=15.0), Gcc())
    assert beside.sent_mbps < alone.sent_mbps


@pytest.mark.parametrize("make", [Gcc, KalmanGcc, Salsify, Copa, BbrLike, Fbra])
def test_every_controller_uses_a_steady_link_without_ruin(make: Callable[[], Controller]) -> None:
    """1 Mbit/s: at least a fifth of it, without stalls, and what is sent arrives."""
    outcome = run_call(Call(made_table(), Link("steady", constant(1e6)), seconds=30.0), make())
    assert outcome.sent_mbps > 0.2
    assert outcome.stalls_per_minute == 0
    assert outcome.loss < 0.05


def test_the_oracle_knows_the_link() -> None:
    """1 Mbit/s for a second, then 3, over and over: 2 in the mean."""
    link = Link("square", RateTrace(np.array([0, SECOND]), np.array([1e6, 3e6]), 2 * SECOND))
    assert capacity_bps(link, 0, SECOND) == pytest.approx(1e6)
    assert capacity_bps(link, SECOND // 2, 3 * SECOND // 2) == pytest.approx(2e6)
    times = np.arange(0, 100, 10) * MS
    chances = RateTrace(times, np.zeros(10), 100 * MS, opportunities=True)
    assert capacity_bps(Link("chances", chances), 0, SECOND) == pytest.approx(100 * 9_824)
    oracle = run_call(Call(made_table(), link, seconds=20.0), RateOracle(link))
    gcc = run_call(Call(made_table(), link, seconds=20.0), Gcc())
    assert oracle.p95_delay_ms < gcc.p95_delay_ms
    assert oracle.stalls_per_minute == 0


def test_equal_calls_are_equal_and_links_of_other_seeds_differ() -> None:
    def outcome(seed: int) -> CallOutcome:
        return run_call(Call(made_table(), random_link(seed), seconds=5.0, seed=3), Gcc())

    assert outcome(4) == outcome(4)
    assert outcome(4) != outcome(5)
    names = {link.name for link in held_out_links()}
    assert len(names) == 12


def test_a_link_and_a_table_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadConfig, match="at least 4 packets"):
        Link("short", constant(1e6), queue_packets=3)
    assert Link("least", constant(1e6), queue_packets=4).hop().queue.limit_ms == 48.0
    table = made_table()
    with pytest.raises(BadInput, match="shapes"):
        RateTable(
            "bad", "x", 25.0, table.sizes, table.sizes[:3], table.ssim, table.psnr_db, survives=True
        )


def test_tables_are_kept_to_a_ten_thousandth(tmp_path: Path) -> None:
    table = made_table()
    write_tables([table], tmp_path / "tables.npz")
    (again,) = read_tables(tmp_path / "tables.npz")
    assert np.array_equal(again.sizes, table.sizes)
    assert again.ssim == pytest.approx(table.ssim, abs=1e-4)
    assert (again.carry, again.survives, again.name) == (0.5, True, "made")
    (tmp_path / "no.npz").write_bytes(b"no")
    with pytest.raises(BadInput, match="cannot read"):
        read_tables(tmp_path / "no.npz")


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "within_db"), [(0.0, 0.2), (0.05, 1.0)])
def test_a_table_foretells_what_real_pictures_do(loss: float, within_db: float) -> None:
    """The same call by table and with the codec: sizes, times and quality.

    Under loss real pictures look better (0.3 and 0.6 dB): the table knows of no vector that is sent twice.
    """
    clip, table = measured()
    link = Link("lossy", constant(2e6), delay_ms=30.0, loss=loss)
    for bps in (250e3, 450e3):
        by_table = run_call(Call(table, link, seconds=4.0), Fixed(bps))
        real_call = RealCall.over(link, clip, codec(), 4.0)
        real = run_call(real_call, Fixed(bps))
        assert real.sent_mbps == pytest.approx(by_table.sent_mbps, rel=0.02)
        assert real.p95_delay_ms == pytest.approx(by_table.p95_delay_ms, rel=0.1)
        assert real.undecoded_share == by_table.undecoded_share
        assert abs(real.ssim_db - by_table.ssim_db) < within_db
        assert len(real_call.shown) > 85


@pytest.mark.slow
def test_every_row_of_a_table_is_of_a_predicted_picture() -> None:
    """A call comes back to the first picture and predicts it; an intra picture would fall twice as far."""
    _, table = measured()
    fall = table.ssim[:, :, 0] - table.ssim[:, :, 3]
    assert (fall[0] < 1.5 * fall[1:].mean(0)).all()
    assert (table.sizes[0] < 0.8 * table.intra_sizes[0]).all()


@cache
def measured() -> tuple[Clip, RateTable]:
    clip = Clip("moving", 25.0, moving(24).pictures)
    return clip, measure_codec(codec(), "masked", clip)
