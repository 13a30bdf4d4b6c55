"""What every source of frames is: opened once, read until it ends, closed."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from scene_edge.codec.identity import Frame
from scene_edge.codec.planes import Planes
from scene_edge.edge.clock import Clock


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source turned out to be. `live`: frames that do not fit are dropped, because they will not wait.

    `notes` announce what was done to the picture, such as an odd last row that was cut off.
    """

    width: int
    height: int
    fps: float
    live: bool
    notes: tuple[str, ...] = ()

    @property
    def frame_period_ns(self) -> int:
        return round(1e9 / self.fps)


class Source(Protocol):
    """`faults` counts what was survived, by name; `stop()` may come from another thread and ends a waiting read."""

    faults: Counter[str]

    def open(self) -> SourceInfo:
        """Raises SourceError if there is nothing to read."""
        ...

    def read(self) -> Frame | None:
        """The next frame, waiting for it; None at the end."""
        ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Pacer:
    """Holds frames back until their time has come, so that a file plays like a camera."""

    def __init__(self, clock: Clock, stopped: threading.Event) -> None:
        self._clock, self._stopped = clock, stopped
        self._offset_ns: int | None = None

    def wait_for(self, media_ns: int) -> int:
        """Sleep until the frame is due; returns the monotonic time at which a camera would have taken it."""
        if self._offset_ns is None:
            self._offset_ns = self._clock.now_ns() - media_ns
        due_ns = media_ns + self._offset_ns
        delay_ns = due_ns - self._clock.now_ns()
        if delay_ns > 0:
            self._clock.wait(self._stopped, delay_ns / 1e9)
        return due_ns

    def frame(self, planes: Planes, media_ns: int, pace: str) -> Frame:
        """The frame at its time: at once (asap), when due (steady), or when due and as if from a camera (realtime).

        Only asap gives the same bytes in every run. steady keeps the recorded times, which no back-pressure stretches,
        and lets the UTC offset say when the frame really was taken.
        """
        if pace == "asap":
            return Frame(planes, media_ns)
        due_ns = self.wait_for(media_ns)
        if pace == "steady":
            return Frame(planes, media_ns, self._clock.now_ns() + self._clock.utc_offset_ns() - media_ns)
        return Frame(planes, due_ns, self._clock.utc_offset_ns())


def scaled_size(width: int, height: int, max_width: int | None) -> tuple[int, int, tuple[str, ...]]:
    """The even size in which a picture of this size is processed, and what must be said about it.

    >>> scaled_size(1921, 1081, None)
    (1920, 1080, ('odd size cut: 1921x1081 to 1920x1080',))
    """
    if max_width is not None and width > max_width:
        new_width = max_width // 2 * 2
        new_height = max(2, round(height * new_width / width / 2) * 2)
        return new_width, new_height, (f"scaled down: {width}x{height} to {new_width}x{new_height}",)
    even = width // 2 * 2, height // 2 * 2
    notes = (f"odd size cut: {width}x{height} to {even[0]}x{even[1]}",) if even != (width, height) else ()
    return *even, notes
