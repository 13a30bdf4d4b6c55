"""Tiles and letterboxes: coverage, exact inverses, and colours against a plain formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.tiles import Letterbox, Tile, bgr_of, crop, letterboxed, scaled, square_tiles

even = st.integers(4, 1200).map(lambda half: half * 2)


def picture(width: int, height: int, seed: int = 0) -> Planes:
    random = np.random.default_rng(seed)
    half = (height // 2, width // 2)
    return Planes(
        random.integers(16, 236, (height, width), np.uint8),
        random.integers(16, 241, half, np.uint8),
        random.integers(16, 241, half, np.uint8),
    )


@settings(max_examples=100, deadline=None)
@given(even, even)
def test_tiles_cover_the_picture_and_overlap(width: int, height: int) -> None:
    tiles = square_tiles(width, height)
    for tile in tiles:
        assert min(tile.left, tile.top) >= 0
        assert tile.left + tile.width <= width
        assert tile.top + tile.height <= height
        assert not (tile.left | tile.top | tile.width | tile.height) % 2
    assert tiles[0].left == tiles[0].top == 0
    assert (tiles[-1].left + tiles[-1].width, tiles[-1].top + tiles[-1].height) == (width, height)
    if len(tiles) == 2:
        assert tiles[0].left + tiles[0].width >= tiles[1].left
        assert tiles[0].top + tiles[0].height >= tiles[1].top


def test_full_hd_is_cut_into_two_overlapping_squares() -> None:
    assert square_tiles(1920, 1080) == (Tile(0, 0, 1080, 1080), Tile(840, 0, 1080, 1080))
    assert square_tiles(320, 240) == (Tile(0, 0, 320, 240),)


@settings(max_examples=100, deadline=None)
@given(even, even, st.booleans(), st.integers(0, 2**31))
def test_letterbox_is_undone_exactly(width: int, height: int, centred: bool, seed: int) -> None:
    box = Letterbox.fit(width, height, 512, 288, centred=centred)
    assert box.left + box.width <= 512
    assert box.top + box.height <= 288
    assert not (box.left | box.top | box.width | box.height) % 2
    boxes = np.random.default_rng(seed).uniform(0, min(width, height), (5, 4)).astype(np.float32)
    np.testing.assert_allclose(box.to_picture(box.to_input(boxes)), boxes, atol=2e-2)
    corners = box.to_input(np.array([[0, 0, width, height]], np.float32))[0]
    assert corners == pytest.approx([box.left, box.top, box.left + box.width, box.top + box.height], abs=2.0)


def test_a_cropped_tile_is_that_part_of_every_plane() -> None:
    planes = picture(64, 48)
    tile = crop(planes, Tile(16, 8, 32, 20))
    assert (tile.y == planes.y[8:28, 16:48]).all()
    assert (tile.u == planes.u[4:14, 8:24]).all()
    assert (tile.v == planes.v[4:14, 8:24]).all()


def test_letterboxed_puts_the_picture_in_its_place_and_grey_elsewhere() -> None:
    planes = picture(64, 64)
    box = Letterbox.fit(64, 64, 128, 64)
    padded = letterboxed(planes, box, 128, 64)
    assert (padded.y[:, :64] == planes.y).all()
    assert (padded.y[:, 64:] == 112).all()
    assert (padded.u[:, 32:] == 128).all()


def test_scaling_to_the_same_size_copies_nothing_and_averages_areas() -> None:
    planes = picture(32, 32)
    assert scaled(planes, 32, 32) is planes
    small = scaled(planes, 16, 16)
    means = planes.y.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.abs(small.y - means).max() <= 0.5


def test_colours_are_limited_range_bt601() -> None:
    planes = picture(16, 8)
    got = bgr_of(planes).astype(float)
    luma = 1.164383 * (planes.y.astype(float) - 16)
    u, v = (plane.astype(float).repeat(2, 0).repeat(2, 1) - 128 for plane in (planes.u, planes.v))
    wanted = np.stack([luma + 2.017232 * u, luma - 0.391762 * u - 0.812968 * v, luma + 1.596027 * v], axis=2)
    assert np.abs(got - wanted.clip(0, 255)).max() <= 1.5
