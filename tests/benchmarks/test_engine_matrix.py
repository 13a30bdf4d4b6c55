"""Every engine that is installed codes for every other: packets decode, integers are equal, pictures stay close."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.engine_matrix import SIDES, Cells, Drift, bounds, cross
from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.planes import Planes
from scene_edge.inference.session import available_engines


def moving(count: int, width: int, height: int) -> list[Planes]:
    """Blocks of noise that move over a gradient: x264 loses much of them, and Sem-Net sees edges."""
    random = np.random.default_rng(3)
    blocks = np.kron(random.integers(0, 256, (height // 12, width // 12)), np.ones((12, 12)))
    field = np.clip(0.7 * blocks + random.integers(0, 70, (height, width)), 0, 255).astype(np.uint8)
    chroma = np.full((height // 2, width // 2), 120, np.uint8)
    return [Planes(np.roll(field, 6 * frame, 1), chroma, chroma + np.uint8(9)) for frame in range(count)]


@pytest.mark.skipif("smc-s" not in shipped_bundles(), reason="this needs the bundle smc-s in models/zoo")
def test_all_pairs_of_engines() -> None:
    """At the one size that LiteRT's artefacts have. `cross` itself refuses a packet that is not used whole."""
    sides = [side for side in SIDES if not available_engines()[side.engine].startswith("absent")]
    if len(sides) < 2:
        pytest.skip("this needs two engines")
    cells: Cells = {}
    shares = cross(*(Bundle.open("smc-s"), sides, moving(3, 960, 540), 25.0), crf=45, gop=30, quality=0, cells=cells)
    assert len(cells) == len(sides) ** 2
    assert all(cell.packets == 1 and cell.frames == 3 and cell.nonzero > 1000 for cell in cells.values())
    assert all(share < 0.2 for share in shares.values()), shares
    assert all(cells[side, side].own.largest == 0 for side in sides), "an engine repeats itself"
    worst = bounds(cells)
    assert worst["least_psnr_to_own"] > 38, "what the server makes of it hardly depends on the camera's engine"
    assert worst["least_psnr_to_reference"] > 38
    assert worst["spread_to_original_db"] < 0.3


def test_drift_of_pictures() -> None:
    flat = np.full((4, 4), 100, np.uint8)
    half = np.full((2, 2), 50, np.uint8)
    drift = Drift()
    drift.add([Planes(flat, half, half)], [Planes(flat, half, half)])
    assert math.isinf(drift.psnr)
    assert drift.largest == 0
    other = flat.copy()
    other[0, 0] = 96
    drift.add([Planes(flat, half, half)], [Planes(other, half, half + np.uint8(7))])
    assert drift.psnr == pytest.approx(10 * math.log10(255**2 * 32 / 16))
    assert drift.largest == 7
