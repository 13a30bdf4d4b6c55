"""A picture made of arithmetic: moving blocks on a drifting texture, the same bytes on every machine. Needs nothing."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

from scene_edge.codec.errors import SourceError
from scene_edge.codec.identity import Frame
from scene_edge.codec.planes import U8, Planes
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.sources.base import Pacer, SourceInfo, scaled_size

_BLOCKS = 6


class TestSource:
    """Endless unless `frames` is given."""

    __test__ = False  # its name is FFmpeg's, pytest must not collect it

    def __init__(
        self,
        width: int = 1280,
        height: int = 720,
        fps: float = 30.0,
        *,
        pace: str = "realtime",
        frames: int | None = None,
        max_width: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._asked = width, height
        self._fps, self._pace, self._frames, self._max_width = fps, pace, frames, max_width
        self._clock = clock or SystemClock()
        self._stopped = threading.Event()
        self._pacer = Pacer(self._clock, self._stopped)
        self._texture: U8 | None = None
        self._size = (0, 0)
        self._count = 0

    def open(self) -> SourceInfo:
        width, height, notes = scaled_size(*self._asked, self._max_width)
        self._size = width, height
        rows, columns = np.mgrid[0 : height + 64, 0 : width + 64]
        self._texture = (96 + 24 * np.sin(columns / 23.0) + 24 * np.cos(rows / 17.0)).astype(np.uint8)
        return SourceInfo(width, height, self._fps, self._pace == "realtime", notes)

    def read(self) -> Frame | None:
        if self._texture is None:
            raise SourceError("testsrc is read before it is open", hint="Call open() first.")
        if self._stopped.is_set() or self._count == self._frames:
            return None
        planes = self._picture(self._count)
        media_ns = round(self._count * 1e9 / self._fps)
        self._count += 1
        return self._pacer.frame(planes, media_ns, self._pace)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()

    def _picture(self, index: int) -> Planes:
        width, height = self._size
        shift = index % 64
        y = self._texture_at(shift)[:height, :width].copy()
        u: U8 = np.full((height // 2, width // 2), 118, np.uint8)
        v: U8 = np.full((height // 2, width // 2), 132, np.uint8)
        side = max(8, min(width, height) // 8) // 2 * 2
        for block in range(_BLOCKS):
            left = (block * 97 + index * (block + 2)) % max(1, width - side) // 2 * 2
            top = (block * 61 + index * (_BLOCKS - block)) % max(1, height - side) // 2 * 2
            y[top : top + side, left : left + side] = 40 + 30 * block
            u[top // 2 : (top + side) // 2, left // 2 : (left + side) // 2] = 60 + 25 * block
            v[top // 2 : (top + side) // 2, left // 2 : (left + side) // 2] = 200 - 25 * block
        return Planes(y, u, v)

    def _texture_at(self, shift: int) -> U8:
        if self._texture is None:
            raise SourceError("testsrc is read before it is open", hint="Call open() first.")
        return self._texture[shift:, shift:]
