"""Bits by position add up to what the tables say, the window is where they are, and the picture is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.visuals import ROWS, Coded, busiest, draw, load_network, parse_window, position_bits
from scene_edge.codec.errors import ConfigError
from scene_edge.codec.latents import LatentTables


def test_bits_by_position_add_up_to_the_estimate() -> None:
    random = np.random.default_rng(1)
    gop = random.integers(-2, 3, (5, 4, 6, 7)) * (random.random((5, 1, 6, 7)) < 0.2)
    gop = gop.astype(np.int16)
    gop[2] = 0
    tables = LatentTables.fit([gop])
    bits = position_bits(tables, gop)
    assert bits.shape == (6, 7)
    # the flags of five frames are all that belongs to no position
    assert 0.0 <= tables.estimate_bits(gop) - 5 * float(bits.sum()) < 5 * 4.0


def test_a_lone_value_costs_most_where_it_is() -> None:
    gop = np.zeros((3, 4, 6, 7), np.int16)
    gop[1, 2, 4, 5] = 1
    bits = position_bits(LatentTables.fit([gop]), gop)
    assert np.unravel_index(bits.argmax(), bits.shape) == (4, 5)


def test_the_window_is_where_the_bits_are_and_inside_the_picture() -> None:
    bits = np.zeros((6, 8), np.float32)
    bits[3:5, 6:] = 1.0  # of the last column, half is padding
    assert busiest(bits, 16, (88, 112), (32, 32)) == (48, 80)
    assert busiest(bits, 16, (88, 112), (880, 1120)) == (0, 0)


def test_windows_are_read_as_width_by_height_in_whole_positions() -> None:
    assert parse_window("400x215") == (208, 400)
    for text in ("400", "axb", "8x208"):
        with pytest.raises(ConfigError, match="window"):
            parse_window(text)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint"):
        load_network(str(tmp_path / "nothing"), "smc-s", 0)


def test_the_picture_is_as_wide_as_promised(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    picture = np.full((64, 96, 3), 90, np.uint8)
    coded = Coded(
        dict.fromkeys(ROWS[:4], picture), np.ones((4, 6), np.float32), np.ones((4, 6), np.float32), (80, 2), 16
    )
    draw([("mot/a, frame 3", coded), ("vos/b, frame 3", coded)], (32, 64), 43, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width == 1600
