"""The contexts of latents against docs/protocol.md, written out place by place as somebody else would."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scene_edge.codec.contexts import QUARTERS, Memory, symbolise

MAX_ABS = 3
Planes = NDArray[np.int16]


def reached(value: int, edges: tuple[int, ...]) -> int:
    return sum(value >= edge for edge in edges)


def at(plane: NDArray[np.generic], y: int, x: int) -> int:
    inside = 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]
    return int(plane[y, x]) if inside else 0


class ByTheBook:
    """Frames in, (flag row, [place rows], [value rows], [value symbols]) out, in the order of the message."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.first = True
        self.before = np.zeros(shape[1:], int)
        self.heat = np.zeros(shape[1:], int)
        self.trace = np.zeros(shape, int)

    def frame(self, z: Planes) -> tuple[int, list[int], list[int], list[int]]:
        now = (z != 0).any(axis=0).astype(int)
        flag_row = 0 if self.first else 1 + int(self.before.any())
        places = [
            (y, x)
            for odd_y, odd_x in ((0, 0), (1, 1), (0, 1), (1, 0))
            for y in range(odd_y, z.shape[1], 2)
            for x in range(odd_x, z.shape[2], 2)
        ]
        place_rows = [4 * self.group(y, x) + self.near(now, y, x) for y, x in places] if now.any() else []
        rows, symbols = [], []
        for c in range(z.shape[0]):
            for y, x in np.argwhere(now):
                k, negative = self.level(c, y, x)
                rows.append(40 * c + 4 * k + 2 * int(self.before[y, x]) + int(z[:c, y, x].any()))
                v = -int(z[c, y, x]) if negative else int(z[c, y, x])
                symbols.append(2 * MAX_ABS + 1 if abs(v) > MAX_ABS else 2 * v if v >= 0 else -2 * v - 1)
        self.heat = self.heat - self.heat // 4 + 32 * now
        self.trace = np.fix(self.trace / 2).astype(int) + 64 * np.clip(z, -4, 4)
        self.before, self.first = now, False
        return flag_row, place_rows, rows, symbols

    def group(self, y: int, x: int) -> int:
        if self.first:
            return 0
        p = int(self.before[y, x])
        around = sum(at(self.before, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) - p
        a = 0 if around == 0 else 1 if around == 1 else 2 if around <= 3 else 3 if around <= 6 else 4
        return 1 + 6 * (5 * p + a) + reached(int(self.heat[y, x]), (1, 8, 24, 48, 80))

    def near(self, now: NDArray[np.int64], y: int, x: int) -> int:
        if y % 2 == 0 and x % 2 == 0:
            return 0
        if y % 2 and x % 2:
            return 1 + min(2, sum(at(now, y + dy, x + dx) for dy in (-1, 1) for dx in (-1, 1)))
        return 1 + min(2, sum(at(now, y + dy, x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))))

    def level(self, c: int, y: int, x: int) -> tuple[int, bool]:
        own = int(self.trace[c, y, x])
        level = reached(abs(own), (8, 32, 64, 96, 128, 160))
        if level:
            return 3 + level, own < 0
        around = sum(at(self.trace[c], y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        return reached(abs(around), (1, 64, 128)), around < 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (4, 7, 6), (2, 1, 9)])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
def test_every_row_is_the_one_that_the_protocol_names(shape: tuple[int, int, int], density: float) -> None:
    rng = np.random.default_rng(int(density * 100) + sum(shape))
    values = rng.integers(-6, 7, (24, *shape)) * (rng.random((24, *shape)) < density)
    values[:, :, ::2] *= rng.random((24, 1, 1, 1)) < 0.7  # so that some frames, and parts of them, hold still or stop
    values[5:8] = values[4]
    values[9:12] = 0
    book, memory = ByTheBook(shape), None
    for z in values.astype(np.int16):
        flag_row, place_rows, rows, symbols = book.frame(z)
        found = symbolise(memory, z, MAX_ABS)
        assert (found.flag, found.flag_row) == (int(z.any()), flag_row)
        assert found.place_rows.tolist() == place_rows
        assert found.value_rows.tolist() == rows
        assert found.values.tolist() == symbols
        memory = Memory.after(memory, z)


def test_the_quarters_are_the_whole_plane_once() -> None:
    plane = np.arange(35).reshape(5, 7)
    assert sorted(np.concatenate([plane[quarter].ravel() for quarter in QUARTERS])) == list(range(35))
