"""Pictures and motion, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.net.rtc.clip import moving

from kdn.errors import BadInput
from kdn.net.rtc.codec.motion import concealed, estimate, moved
from kdn.net.rtc.codec.picture import (
    Picture,
    blank,
    is_new_scene,
    packed,
    padded,
    psnr_db,
    ssim,
    ssim_db,
    unpacked,
)


def test_packing_and_back_changes_nothing() -> None:
    picture = moving().pictures[0]
    again = unpacked(packed(picture))
    assert all(np.array_equal(a, b) for a, b in zip(picture, again, strict=True))


def test_a_uniform_error_of_five_is_34_db() -> None:
    """10 log10(255^2 / 25) = 34.15."""
    grey = blank(32, 32)
    assert psnr_db(Picture(grey.y + 5, grey.u, grey.v), grey) == pytest.approx(34.15, abs=0.01)
    assert psnr_db(grey, grey) == 60.0


def test_similarity_of_flat_pictures_is_the_luminance_term() -> None:
    """128 against 138: (2 * 128 * 138 + C1) / (128^2 + 138^2 + C1) = 0.99718."""
    grey = blank(32, 32)
    assert ssim(Picture(grey.y + 10, grey.u, grey.v), grey) == pytest.approx(0.99718, abs=1e-5)
    assert ssim_db(0.99) == pytest.approx(20.0)
    assert ssim_db(1.0) == pytest.approx(50.0)


def test_odd_or_tiny_pictures_are_refused_and_others_padded() -> None:
    with pytest.raises(BadInput, match="even"):
        padded(Picture(np.zeros((33, 64), np.uint8), *(np.zeros((16, 32), np.uint8),) * 2))
    small = padded(blank(18, 34))
    assert small.y.shape == (32, 48)
    assert small.u.shape == (16, 24)


def test_a_shift_is_found_and_undone() -> None:
    """A texture moved by (3, -5) samples is (6, -10) half samples; the inner blocks match it exactly."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 255, (24, 24)).astype(float)
    wide = np.kron(coarse, np.ones((8, 8)))
    for axis in (0, 1):
        for _ in range(3):
            wide = (np.roll(wide, 1, axis) + wide + np.roll(wide, -1, axis)) / 3
    plane = wide.astype(np.uint8)
    half = np.full((48, 48), 128, np.uint8)
    before, now = (Picture(np.ascontiguousarray(p), half, half) for p in _windows(plane))
    vectors = estimate(now, before)
    inner = vectors[1:-1, 1:-1].reshape(-1, 2)
    assert np.mean(np.all(inner == (6, -10), axis=1)) > 0.8
    found = moved(before, vectors)
    assert np.abs(found.y[16:-16, 16:-16].astype(int) - now.y[16:-16, 16:-16]).mean() < 1.0


def _windows(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return plane[40:136, 40:136], plane[43:139, 35:131]


def test_half_samples_are_means_of_two() -> None:
    row = np.tile(np.arange(0, 64, 2, dtype=np.uint8), (32, 1))
    half = np.full((16, 16), 128, np.uint8)
    vectors = np.zeros((2, 2, 2), np.int8)
    vectors[..., 1] = 1
    assert moved(Picture(row, half, half), vectors).y[0, :4].tolist() == [1, 3, 5, 7]


def test_lost_vectors_are_guessed_from_their_neighbours() -> None:
    vectors = np.full((3, 3, 2), 4, np.int8)
    vectors[1, 1] = 99
    present = np.ones((3, 3), np.bool_)
    present[1, 1] = False
    assert concealed(vectors, present)[1, 1].tolist() == [4, 4]
    assert concealed(vectors, np.zeros((3, 3), np.bool_)).any() == np.False_


def test_a_scene_is_new_where_its_own_means_predict_it_better() -> None:
    """Columns of 100 and 140 lie 20 from each block's mean; a flat picture has no such distance."""
    half = np.full((16, 16), 128, np.uint8)
    striped = np.full((32, 32), 100, np.uint8)
    striped[:, ::2] = 140
    flat = np.full((32, 32), 100, np.uint8)
    for y, error, is_new in (
        (striped, 20, False),
        (striped, 21, True),
        (flat, 8, False),
        (flat, 9, True),
    ):
        predicted = (y.astype(int) + error).astype(np.uint8)
        assert is_new_scene(Picture(y, half, half), Picture(predicted, half, half)) is is_new
