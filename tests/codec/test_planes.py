"""Packing, sample by sample as its definition says it: whatever is moved at once must end where one byte would."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scene_edge.codec.errors import FormatError
from scene_edge.codec.planes import PACKED_CHANNELS, U8, Planes, aligned, pack, unpack

SIZES = [(2, 2), (32, 32), (34, 98), (96, 64), (100, 50), (126, 30)]


def picture(width: int, height: int) -> Planes:
    random = np.random.default_rng(width * height)
    y, u, v = (
        random.integers(0, 256, shape, np.uint8) for shape in ((height, width), *[(height // 2, width // 2)] * 2)
    )
    return Planes(y, u, v)


def clamped(plane: U8, row: int, column: int) -> int:
    return int(plane[min(row, plane.shape[0] - 1), min(column, plane.shape[1] - 1)])


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_each_channel_is_where_the_format_says(width: int, height: int) -> None:
    planes = picture(width, height)
    packed = pack(planes)
    assert packed.shape == (aligned(height) // 4, aligned(width) // 4, PACKED_CHANNELS)
    assert packed.flags.c_contiguous
    for r, c in {(0, 0), (0, packed.shape[1] - 1), (packed.shape[0] - 1, 0), (packed.shape[0] // 2, 3)}:
        luma = [clamped(planes.y, 4 * r + dy, 4 * c + dx) for dy in range(4) for dx in range(4)]
        chroma = [
            clamped(plane, 2 * r + dy, 2 * c + dx) for plane in (planes.u, planes.v) for dy in (0, 1) for dx in (0, 1)
        ]
        assert packed[r, c].tolist() == luma + chroma


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_unpacking_gives_the_picture_back(width: int, height: int) -> None:
    planes = picture(width, height)
    again = unpack(pack(planes), width, height)
    for name in ("y", "u", "v"):
        found: NDArray[np.uint8] = getattr(again, name)
        assert np.array_equal(found, getattr(planes, name))
        assert found.flags.c_contiguous


def test_planes_and_packed_pictures_need_not_be_contiguous() -> None:
    large = picture(200, 120)
    inner = Planes(large.y[10:74, 30:126], large.u[5:37, 15:63], large.v[5:37, 15:63])
    flipped = Planes(large.y[::-1, ::-1], large.u[::-1, ::-1], large.v[::-1, ::-1])
    for planes in (inner, flipped):
        plain = Planes(*(np.ascontiguousarray(plane) for plane in (planes.y, planes.u, planes.v)))
        assert np.array_equal(pack(planes), pack(plain))
    part = pack(large)[3:11, 5:21]
    cut = unpack(part, 64, 32)
    whole = unpack(np.ascontiguousarray(part), 64, 32)
    assert all(np.array_equal(getattr(cut, name), getattr(whole, name)) for name in "yuv")


def test_what_is_no_packed_picture_is_refused() -> None:
    for broken in (np.zeros((8, 8, 23), np.uint8), np.zeros((8, 8, 24), np.int8), np.zeros((8, 24), np.uint8)):
        with pytest.raises(FormatError, match="not a packed picture"):
            unpack(broken, 8, 8)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="too small"):
        unpack(np.zeros((8, 8, 24), np.uint8), 34, 32)
