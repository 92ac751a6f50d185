"""What a viewer sees at each moment, and videos of it that no memory has to hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.net.rtc.clip import codec, moving

from kdn.net.rtc.call import Link
from kdn.net.rtc.clips import read_clip
from kdn.net.rtc.real_call import RealCall
from kdn.net.rtc.strips import screens, seen_at, side_by_side
from kdn.net.world import constant
from kdn.net.world.records import MS

pytest.importorskip("av")
pytest.importorskip("matplotlib")


def waiting(seconds: float) -> RealCall:
    """A call of 25 pictures a second that has not begun."""
    return RealCall.over(Link("any", constant(1e6)), moving(), codec(), seconds)


def test_the_newest_picture_stands_until_a_newer_one_is_decoded() -> None:
    """Decoded after 30, 130, 90 ms and never: at 40, 80, 120 and 160 ms stand 0, 0, 2 and 2."""
    call = waiting(0.2)
    call.state.call[0]["num_frames"] = 4
    call.state.frames["t_decode"][:4] = [30 * MS, 130 * MS, 90 * MS, 0]
    call.shown = {n: call.original(n) for n in range(3)}
    seen = [picture.y for picture in screens(call)]
    assert not seen[0].std()
    for picture, number in zip(seen[1:], (0, 0, 2, 2), strict=True):
        assert np.array_equal(picture, call.original(number).y)
    for number, picture in enumerate(seen[1:], 1):
        one, _ = seen_at(call, number / 25)
        assert one is not None
        assert np.array_equal(picture, one.y)


def test_a_long_video_is_written_picture_by_picture(tmp_path: Path) -> None:
    """400 pictures of 116 x 256 luma samples and half as many of colour: 18 MB, of which few are held."""
    side_by_side({"short": waiting(1.0)}, tmp_path / "short.mp4")  # what is loaded once
    call = waiting(16.0)
    tracemalloc.start()
    try:
        side_by_side({"long": call}, tmp_path / "long.mp4")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert len(read_clip(tmp_path / "long.mp4").pictures) == 400
