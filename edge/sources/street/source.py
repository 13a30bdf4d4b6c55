"""The rendered street as a source: `street:` or `street:SEED`."""

from __future__ import annotations

import threading
from collections import Counter

from scene_edge.codec.errors import SourceError
from scene_edge.codec.identity import Frame
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.sources.base import Pacer, SourceInfo, scaled_size
from scene_edge.edge.sources.street.scene import Street


class StreetSource:
    """Endless unless `frames` is given. Drawing takes a few milliseconds a frame at 960x540."""

    def __init__(
        self,
        width: int = 960,
        height: int = 540,
        fps: float = 30.0,
        *,
        seed: int = 1,
        pace: str = "realtime",
        frames: int | None = None,
        max_width: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._asked = width, height
        self._fps, self._seed, self._pace = fps, seed, pace
        self._frames, self._max_width = frames, max_width
        self._clock = clock or SystemClock()
        self._stopped = threading.Event()
        self._pacer = Pacer(self._clock, self._stopped)
        self._street: Street | None = None
        self._count = 0

    def open(self) -> SourceInfo:
        width, height, notes = scaled_size(*self._asked, self._max_width)
        self._street = Street(width, height, self._fps, self._seed)
        self._street.warm()
        return SourceInfo(width, height, self._fps, self._pace == "realtime", notes)

    def read(self) -> Frame | None:
        if self._street is None:
            raise SourceError("the street is read before it is open", hint="Call open() first.")
        if self._stopped.is_set() or self._count == self._frames:
            return None
        planes = self._street.frame(self._count)
        media_ns = round(self._count * 1e9 / self._fps)
        self._count += 1
        return self._pacer.frame(planes, media_ns, self._pace)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
