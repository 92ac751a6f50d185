"""How much is asked for at once of a remote, by the speed that its reads have shown."""

from __future__ import annotations

from contextlib import suppress

import pytest

from kdn.clock import ManualClock
from kdn.errors import Unreachable
from kdn.store import RemoteCallSettings
from kdn.store.tiers.remote.link import RemoteLink

MIB = 1 << 20


def link_of(bytes_per_s: int) -> RemoteLink:
    """One that has given so much in one second."""
    clock = ManualClock()
    link = RemoteLink(MIB, RemoteCallSettings(timeout_s=2.0, workers=8), clock)
    with link.reading(bytes_per_s):
        clock.advance(1.0)
    return link


@pytest.mark.parametrize(
    ("bytes_per_s", "read_bytes", "at_once"),
    [
        (1_000_000, MIB, 1),
        (8_000_000, MIB, 3),
        (125_000_000, 2_500_000, 8),
        (1_000_000_000, 20_000_000, 8),
    ],
)
def test_a_read_takes_twenty_milliseconds_and_together_they_end_long_before_their_time_out(
    bytes_per_s: int, read_bytes: int, at_once: int
) -> None:
    """A quarter of two seconds at 8 MB/s is 4 MB: three reads of 1 MiB."""
    link = link_of(bytes_per_s)
    assert (link.read_bytes, link.at_once) == (read_bytes, at_once)


def test_a_link_that_has_shown_no_speed_is_read_one_block_at_a_time() -> None:
    link = RemoteLink(MIB, RemoteCallSettings(), ManualClock())
    assert (link.read_bytes, link.at_once) == (MIB, 1)


def test_after_a_failure_little_is_asked_for_again() -> None:
    """A link of a gigabyte a second that now gives 10 MB: eight reads of 20 MB each would all come too late,
    and none would ever show how slow it is."""
    link = link_of(10**9)
    with suppress(Unreachable), link.reading(20_000_000):
        raise Unreachable("no answer in time")
    assert (link.read_bytes, link.at_once) == (MIB, 1)
