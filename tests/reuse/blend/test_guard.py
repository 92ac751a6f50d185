"""The guard and the controller by hand: what makes the ratio rise, and what ends blending."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import SystemClock
from kdn.core import (
    Blend,
    Finish,
    FinishReason,
    KvShape,
    Prompt,
    Request,
    Role,
    Segment,
    Share,
    StreamEvent,
    Token,
    TokenProb,
    Usage,
)
from kdn.errors import EngineFailed
from kdn.reuse.blend import QualityGuard, RatioController, TimedLoader, divergence
from kdn.reuse.blend.monitor import CollectionMonitor
from kdn.reuse.blend.record import GuardRecord, read_records, write_record
from kdn.reuse.steer import Steer
from kdn.trace import Recorder, Value

SHAPE = KvShape(num_layers=10, num_kv_heads=2, head_dim=5, dtype="float16")  # 400 bytes a token
PROMPT = Prompt((Segment(Role.QUESTION, (1, 2, 3)),))


@dataclass
class Scripted:
    """A generator whose first token is 7 with a probability that depends on the ratio alone."""

    by_ratio: dict[float | None, float]
    asked: list[float | None] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def submit(self, request: Request) -> Answered:
        self.requests.append(request)
        ratio = blend.ratio if (blend := request.option(Blend)) else None
        self.asked.append(ratio)
        p = self.by_ratio[ratio]
        likely = (TokenProb(7, "", math.log(p)), TokenProb(8, "", math.log(1 - p)))
        return Answered([Token(7, "", None, likely), Finish(FinishReason.LENGTH, Usage(3, 1))])


@dataclass
class Answered:
    events: list[StreamEvent]

    def __iter__(self) -> Iterator[StreamEvent]:
        return iter(self.events)

    def cancel(self) -> None:
        raise AssertionError("nobody cancels")

    def on_event(self, listener: object) -> None:
        raise AssertionError("the guard iterates")


def blended(number: int, collection: str = "", salt: str = "") -> Request:
    return Request(str(number), PROMPT, techniques=(Blend(collection=collection),), salt=salt)


def watched(
    generator: Scripted, *, limit: float, times: int
) -> tuple[RatioController, QualityGuard, Recorder]:
    controller, trace = RatioController(0.15), Recorder()
    guard = QualityGuard(controller, 1, limit, trace)
    for number in range(times):
        if guard.wants(blended(number)):
            guard.compare(blended(number), generator)
    guard.check()
    return controller, guard, trace


def test_one_in_so_many_is_wanted_and_never_one_with_its_own_ratio() -> None:
    guard = QualityGuard(RatioController(0.15), 3, 0.5, Recorder())
    assert [guard.wants(blended(i)) for i in range(6)] == [False, False, True] * 2
    assert not QualityGuard(RatioController(0.15), 0, 0.5, Recorder()).wants(blended(0))
    assert not QualityGuard(RatioController(0.15), 1, 0.5, Recorder()).wants(
        Request("own", PROMPT, techniques=(Blend(0.3),))
    )


def test_answers_within_the_limit_change_nothing() -> None:
    """KL of (0.9, 0.1) from (0.8, 0.2) is 0.037 nats."""
    controller, guard, _ = watched(Scripted({None: 0.9, 0.15: 0.8}), limit=0.1, times=6)
    assert controller.floor() == 0.15
    stat = guard.stats()[""]
    assert (stat.samples, stat.agreed, stat.ratio) == (6, 6, 0.15)
    assert stat.mean_kl == pytest.approx(0.0366, abs=1e-3)


def test_an_answer_in_full_differs_in_what_it_reads_alone() -> None:
    """It reads no stored KV, and no sibling's. Both are steered alike."""
    generator, steer = Scripted({None: 0.9, 0.15: 0.8}), Steer(((1, 2.0),))
    guard = QualityGuard(RatioController(0.15), 1, 0.1, Recorder())
    guard.compare(blended(0).using(steer), generator)
    full, now = generator.requests
    assert (full.reuse, full.techniques) == (False, (steer, Share("exact")))
    assert (now.reuse, now.techniques) == (True, (steer, Blend(0.15)))


def test_a_ratio_that_was_raised_is_none_below_the_configured_one() -> None:
    """The guard once went from 0.15 to 0.3; the setting is 0.6 now."""
    assert CollectionMonitor(0.6, GuardRecord(ratio=0.3)).ratio == 0.6
    assert CollectionMonitor(0.15, GuardRecord(ratio=0.3)).ratio == 0.3


def test_drift_raises_the_ratio_when_more_rows_help() -> None:
    """Four comparisons to see it, four more beside twice the ratio; then all is well at 0.3."""
    generator = Scripted({None: 0.9, 0.15: 0.2, 0.3: 0.85})
    controller, guard, trace = watched(generator, limit=0.5, times=9)
    assert controller.floor() == 0.3
    assert generator.asked[:8] == [None, 0.15] * 4
    assert generator.asked[8:11] == [None, 0.15, 0.3]
    assert trace.count("blend.ratio") == 1
    assert guard.stats()[""].agreed == 1, "the likeliest token was another until the ratio rose"


def test_drift_stops_blending_when_more_rows_do_not_help() -> None:
    controller, guard, trace = watched(
        Scripted({None: 0.9, 0.15: 0.2, 0.3: 0.1}), limit=0.5, times=12
    )
    assert controller.floor() == 1.0
    assert trace.count("blend.stop") == 1
    assert guard.stats()[""].samples == 8, "nothing is blended any more, so nothing is compared"


def test_collections_are_judged_apart() -> None:
    """Blending fails over the contracts and goes on over the notes, and over what nobody named."""
    controller, trace = RatioController(0.15), Recorder()
    guard = QualityGuard(controller, 1, 0.5, trace)
    for number in range(8):
        for collection, at_ratio in (("contracts", 0.2), ("notes", 0.85)):
            asked = blended(number, collection)
            if guard.wants(asked):
                guard.compare(asked, Scripted({None: 0.9, 0.15: at_ratio, 0.3: 0.1}))
    assert controller.floor("contracts") == 1.0
    assert controller.floor("notes") == controller.floor() == 0.15
    assert {name: stat.samples for name, stat in guard.stats().items()} == {
        "contracts": 8,
        "notes": 8,
    }
    assert controller.ratio({"disk": 10}, SHAPE, 1000, "contracts") == 1.0
    guard.check()


def test_tenants_are_judged_apart() -> None:
    """Blending fails over one tenant's notes. Another's of the same name, and nobody's, blend on."""
    controller = RatioController(0.15)
    guard = QualityGuard(controller, 1, 0.5, Recorder())
    for number in range(8):
        for salt, at_ratio in (("acme", 0.2), ("other", 0.85)):
            asked = blended(number, "notes", salt)
            if guard.wants(asked):
                guard.compare(asked, Scripted({None: 0.9, 0.15: at_ratio, 0.3: 0.1}))
    assert controller.ratio({}, SHAPE, 1000, "notes", "acme") == 1.0
    assert controller.floor("notes", "other") == controller.floor("notes") == 0.15
    assert guard.stats("acme")["notes"].samples == 8
    assert guard.stats() == {}, "their names are not those of the tenant without a salt"
    guard.check()


def test_a_tenant_that_makes_names_up_forgets_its_own_oldest_ones() -> None:
    """256 of one tenant; what it asked again stays; another tenant keeps its own."""
    controller, kept = RatioController(0.15), dict[tuple[str, str], GuardRecord | None]()
    guard = QualityGuard(
        controller,
        2,
        0.5,
        Recorder(),
        records={"": {"contracts": GuardRecord(ratio=1.0)}, "acme": {"0": GuardRecord(ratio=0.3)}},
        keep=lambda salt, name, record: kept.update({(salt, name): record}),
    )
    for number in range(300):
        guard.wants(blended(number, f"{number}", "acme"))
        guard.wants(blended(number, "0", "acme"))
    assert set(guard.stats("acme")) == {"0", *(f"{number}" for number in range(45, 300))}
    assert (controller.floor("0", "acme"), controller.floor("contracts")) == (0.3, 1.0)
    assert kept["acme", "44"] is None
    assert kept["acme", "45"] == GuardRecord(asked=1)
    guard.check()


def test_tenants_that_are_made_up_do_not_put_out_one_with_few_names() -> None:
    """1,024 of all: a tenant with 256 loses before one with 2 does."""
    guard = QualityGuard(RatioController(0.15), 2, 0.5, Recorder())
    for name in ("contracts", "notes"):
        guard.wants(blended(0, name, "small"))
    for number in range(256):
        guard.wants(blended(number, f"{number}", "large"))
    for number in range(800):
        guard.wants(blended(number, "", f"made up {number}"))
    assert len(guard.all_stats()) == 1024
    assert (len(guard.stats("large")), len(guard.stats("small"))) == (222, 2)
    guard.check()


def test_a_conclusion_over_what_was_let_go_meanwhile_is_dropped() -> None:
    guard = QualityGuard(RatioController(0.15), 1, 0.5, Recorder())

    class Slow(Scripted):
        def submit(self, request: Request) -> Answered:
            for number in range(256):
                guard.wants(blended(number, f"{number}"))
            return super().submit(request)

    assert guard.wants(blended(0, "notes"))
    guard.compare(blended(0, "notes"), Slow({None: 0.9, 0.15: 0.2}))
    assert guard.stats()["notes"].samples == 0
    guard.check()


def test_what_the_guard_found_outlives_it(tmp_path: Path) -> None:
    file, kept = tmp_path / "guard.json", list[tuple[str, str, GuardRecord | None]]()
    guard = QualityGuard(
        RatioController(0.15), 1, 0.5, Recorder(), keep=lambda *found: kept.append(found)
    )
    for number in range(8):
        assert guard.wants(blended(number, "notes"))
        guard.compare(blended(number, "notes"), Scripted({None: 0.9, 0.15: 0.2, 0.3: 0.1}))
    write_record(file, "model", *kept[-1])
    write_record(file, "model", "", "", GuardRecord(asked=2))
    write_record(file, "model", "acme & sons", "", GuardRecord(asked=4))
    write_record(file, "other", "", "", GuardRecord(asked=3))
    again, records = RatioController(0.15), {"": read_records(file)["model", ""]}
    found = QualityGuard(again, 1, 0.5, Recorder(), records=records).stats()
    assert found["notes"].samples == 8
    assert (again.floor("notes"), again.floor()) == (1.0, 0.15)
    assert read_records(file)["other", ""][""].asked == 3
    assert read_records(file)["model", "acme & sons"][""].asked == 4
    write_record(file, "other", "", "", None)
    assert ("other", "") not in read_records(file)


def test_no_writer_loses_another_s_record(tmp_path: Path) -> None:
    file = tmp_path / "home" / "guard.json"

    def write(writer: int) -> None:
        for number in range(10):
            write_record(file, f"model-{writer}", "", f"{number}", GuardRecord(asked=number))

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, range(4)))
    assert sum(map(len, read_records(file).values())) == 40


def test_a_torn_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "guard.json").write_text('{"model": {"asked"')
    assert read_records(tmp_path / "guard.json") == {}


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)
def test_divergence_is_never_negative_and_nothing_from_itself(
    ours: list[float], theirs: list[float]
) -> None:
    p = {i: math.log(x / sum(ours)) for i, x in enumerate(ours)}
    q = {i: math.log(theirs[i] / sum(theirs[: len(ours)])) for i in p}
    assert divergence(p, p) == pytest.approx(0, abs=1e-6)
    exact = sum(math.exp(p[i]) * (p[i] - q[i]) for i in p)
    assert divergence(p, q) == pytest.approx(max(exact, 0), abs=1e-6)


# --- the loading controller -----------------------------------------------------------------------


def test_before_anything_was_measured_the_floor_decides() -> None:
    assert RatioController(0.15).ratio({"disk": 1000}, SHAPE, 1000) == 0.15


def test_the_ratio_fills_the_time_of_the_load() -> None:
    """1,000 tokens prefill in 1 s; 1,000 tokens (400 kB) load in 0.4 s: 40 % is free."""
    controller = RatioController(0.15)
    controller.speeds.prefilled(500, 0.5)
    controller.speeds.loaded("disk", 400_000, 0.4)
    assert controller.ratio({"disk": 1000}, SHAPE, 1000) == pytest.approx(0.4)
    assert controller.ratio({"disk": 250}, SHAPE, 1000) == 0.15, "never below the floor"
    assert controller.ratio({"disk": 9000}, SHAPE, 1000) == 1.0, "computing it all is quicker"


@pytest.mark.parametrize("mb_per_s", [1, 10, 100, 1000])
def test_a_throttled_loader_moves_the_ratio(mb_per_s: int) -> None:
    """First tokens come near the larger of load and recompute, whatever the rate."""
    controller = RatioController(0.15)
    controller.speeds.prefilled(1000, 1.0)
    controller.speeds.loaded("slow", 10**6, 1 / mb_per_s)
    ratio = controller.ratio({"slow": 1000}, SHAPE, 1000)
    assert ratio == pytest.approx(min(max(0.15, 0.4 / mb_per_s), 1.0))


def test_the_papers_own_numbers() -> None:
    """16 ms a layer to load, 3 ms to recompute 15 % (section 5.1): 80 % is free."""
    controller = RatioController(0.15)
    controller.speeds.prefilled(1000, 20.0)
    controller.speeds.loaded("nvme", 1000 * SHAPE.token_bytes, 16.0)
    assert controller.ratio({"nvme": 1000}, SHAPE, 1000) == pytest.approx(0.8)


def test_plain_answers_teach_the_speed_of_a_prefill_and_others_do_not() -> None:
    """500 of the tokens were blended, shared or lossy: they were not computed as a prefill computes them."""
    controller = RatioController(0.15)
    answer: dict[str, Value] = {"ttft_ms": 1000.0, "prompt_tokens": 1100, "exact": 100}
    controller.speeds.event("engine.finish", **answer, approximate=500)
    assert controller.speeds.prefill_s(1000) == 0.0
    controller.speeds.event("engine.finish", **answer, approximate=0)
    assert controller.speeds.prefill_s(1000) == pytest.approx(1.0)


def test_a_timed_loader_tells_what_a_load_took() -> None:
    controller = RatioController(0.15)
    with ThreadPoolExecutor(1) as pool:
        loader = TimedLoader(pool, SystemClock(), controller.speeds, "disk", lambda _: 100)
        assert loader.submit(max, 3, 5).result() == 5
    assert controller.speeds.load_s("disk", 100) > 0


@pytest.mark.parametrize(
    ("full", "other"),
    [
        ({7: math.nan}, {7: 0.0}),
        ({7: 0.0}, {7: math.nan}),
    ],
)
def test_numbers_that_are_none_are_no_divergence(
    full: dict[int, float], other: dict[int, float]
) -> None:
    assert math.isnan(divergence(full, other))


def test_impossible_tokens_count_for_a_large_but_finite_divergence() -> None:
    """A certain token that the other calls impossible: 100 nats. Impossible ones of our own: nothing."""
    assert divergence({7: 0.0}, {7: -math.inf}) == pytest.approx(100, abs=0.1)
    assert divergence({7: 0.0, 8: -math.inf}, {7: 0.0, 8: -1.0}) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(divergence({7: 0.0}, {}))


def test_a_comparison_without_numbers_concludes_nothing() -> None:
    generator = Scripted({None: 0.9, 0.15: math.nan})
    guard = QualityGuard(RatioController(0.15), 1, 0.1, Recorder())
    assert guard.wants(blended(0))
    with pytest.raises(EngineFailed, match="no numbers"):
        guard.compare(blended(0), generator)
    guard.check()
    assert guard.stats()[""].samples == 0


def test_an_answer_that_ends_without_a_token_concludes_nothing() -> None:
    class Cancelled(Scripted):
        def submit(self, request: Request) -> Answered:
            return Answered([Finish(FinishReason.CANCELLED, Usage(3, 0))])

    guard = QualityGuard(RatioController(0.15), 1, 0.1, Recorder())
    with pytest.raises(EngineFailed, match="ended without a token"):
        guard.compare(blended(0), Cancelled({}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[" * 100_000,
        '{"m": {"": {"ratio": -3}}}',
        '{"m": {"": {"ratio": 1e400}}}',
        '{"m": {"": {"asked": -1}}}',
        '{"m": {"": {"recent_kl": [null]}}}',
        '{"m": {"": {"more": ' + "[" * 100_000 + "}}}",
    ],
)
def test_a_damaged_file_of_records_is_no_record(tmp_path: Path, text: str) -> None:
    file = tmp_path / "guard.json"
    file.write_text(text)
    assert read_records(file) == {}
    write_record(file, "m", "", "", GuardRecord(asked=3))
    assert read_records(file)["m", ""][""].asked == 3


def test_counts_that_contradict_each_other_begin_again_and_the_ratio_stays() -> None:
    records = {"": {"": GuardRecord(asked=1, samples=5, agreed=9, ratio=0.3)}}
    guard = QualityGuard(RatioController(0.15), 1, 0.1, Recorder(), records=records)
    guard.check()
    assert (guard.stats()[""].samples, guard.stats()[""].ratio) == (0, 0.3)


@pytest.mark.parametrize("floor", [math.nan, math.inf, 7.0])
def test_a_floor_that_is_none_stops_blending(floor: float) -> None:
    controller = RatioController(0.15)
    controller.set_floor(floor)
    assert controller.ratio({}, SHAPE, 100) == 1.0


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_times_that_are_none_measure_nothing(seconds: float) -> None:
    speeds = RatioController(0.15).speeds
    speeds.prefilled(1000, seconds)
    speeds.loaded("disk", 100, seconds)
    assert (speeds.prefill_s(1000), speeds.load_s("disk", 100)) == (0.0, 0.0)
