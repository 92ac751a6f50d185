"""The frontier, the choice of appendix B by a table, and what is kept of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.core import Fingerprint, KvShape
from kdn.errors import BadInput
from kdn.reuse.share import PairRecord, ShareChoice, ShareRecords
from kdn.reuse.share.pairs import SharePoint, choose_point, frontier, seconds_at
from tests.reuse.share.pairs import point

SENDER, RECEIVER = Fingerprint("a" * 64), Fingerprint("b" * 64)
CHEAP, FAIR = point(work=0.0, kl=0.4), point((2, 5), work=0.3, kl=0.04)
BEST = point((0, 9), work=0.8, kl=0.01)
POINTS = [CHEAP, FAIR, BEST]


def test_the_frontier_keeps_what_nothing_beats_in_both() -> None:
    """0.5 of the work for 0.05 nats is beaten by 0.3 for 0.04; equal work: the better one."""
    beaten, equal = point((1, 7), work=0.5, kl=0.05), point((3, 6), work=0.3, kl=0.06)
    assert frontier([BEST, beaten, FAIR, equal, CHEAP]) == POINTS


@pytest.mark.parametrize(
    ("is_waiting", "within_s", "max_kl", "expected"),
    [
        (True, None, 0.05, FAIR),  # others wait: the least work that is good enough
        (True, 0.1, 0.02, BEST),
        (True, None, 0.5, CHEAP),
        (True, None, 0.001, None),  # nothing is good enough: compute it all
        (False, None, 0.05, FAIR),  # no latency is asked for: as if others waited
        (False, 1.0, 0.5, BEST),  # 0.8 s is in time: the most quality
        (False, 0.5, 0.5, FAIR),  # 0.3 s is, 0.8 s is not
        (False, 0.1, 0.5, CHEAP),  # loading takes 0.05 s
        (False, 0.01, 0.5, CHEAP),  # nothing is in time: the quickest
        (False, 0.1, 0.05, FAIR),  # the quickest that is good enough
    ],
)
def test_the_choice(
    is_waiting: bool, within_s: float | None, max_kl: float, expected: SharePoint | None
) -> None:
    """A prefill of the context takes a second, loading 0.05 s, side by side."""
    found = choose_point(
        POINTS,
        max_kl=max_kl,
        is_waiting=is_waiting,
        seconds=lambda one: max(0.05, one.work),
        within_s=within_s,
    )
    assert found == expected


def test_a_time_lies_on_the_line_through_two_lengths() -> None:
    """0.1 s at 200 tokens and 0.3 s at 1,000 are 0.05 s and 0.25 ms a token."""
    times = ((200, 0.1), (1000, 0.3))
    assert seconds_at(times, 600) == pytest.approx(0.2)
    assert seconds_at(times, 3000) == pytest.approx(0.8)
    assert seconds_at(times[:1], 600) is None


def record(*points: SharePoint) -> PairRecord:
    return PairRecord(
        sender=SENDER,
        receiver=RECEIVER,
        sender_name="base",
        receiver_name="qa",
        num_layers=10,
        contexts=50,
        context_tokens=700,
        own_nll=0.5,
        points=points,
    )


def test_published_ways_are_groups_without_a_map() -> None:
    mapped = point(mapped=True, work=0.04, kl=0.03)
    known = record(CHEAP, FAIR, BEST, mapped)
    assert known.usable("published") == [FAIR, BEST]
    assert known.usable("best") == [CHEAP, mapped, BEST]


def test_records_come_back_from_the_home_folder(tmp_path: Path) -> None:
    """The sender stores inputs at 2, where a point of the frontier begins; the group from 0 needs none."""
    ShareRecords(tmp_path).keep(record(*POINTS), None)
    records = ShareRecords(tmp_path)
    assert records.get(SENDER, RECEIVER) == record(*POINTS)
    assert records.get(RECEIVER, SENDER) is None
    assert [one.sender_name for one in records.senders(RECEIVER)] == ["base"]
    assert records.start_layers(SENDER) == (2,)
    assert records.start_layers(RECEIVER) == ()
    assert records.map(SENDER, RECEIVER, KvShape(10, 2, 16, "bfloat16")) is None


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"sender": 1}'])
def test_a_damaged_profile_is_none(tmp_path: Path, text: str) -> None:
    path = ShareRecords(tmp_path).keep(record(FAIR), None)
    path.write_text(text)
    assert ShareRecords(tmp_path).get(SENDER, RECEIVER) is None


def test_a_profile_under_a_strange_name_is_none(tmp_path: Path) -> None:
    path = ShareRecords(tmp_path).keep(record(FAIR), None)
    path.parent.rename(path.parent.with_name("x-y"))
    assert ShareRecords(tmp_path).get(SENDER, RECEIVER) is None


def test_ways_say_what_they_compute() -> None:
    ways = {
        "reuse": ShareChoice(),
        "layers 4-6": ShareChoice((4, 6)),
        "rows 20 %": ShareChoice(ratio=0.2),
        "map + rows 20 %": ShareChoice(ratio=0.2, mapped=True),
    }
    assert {choice.name: choice for choice in ways.values()} == ways


@pytest.mark.parametrize(
    "wrong",
    [{"group": (3, 2)}, {"group": (-1, 2)}, {"ratio": 1.5}, {"group": (1, 2), "ratio": 0.1}],
)
def test_ways_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        ShareChoice(**wrong)  # type: ignore[arg-type]
