"""Time as a seam: the real clock, and one that tests move by hand."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic time."""
        ...

    def utc_offset_ns(self) -> int:
        """What to add to monotonic time to have UTC."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep until `event` is set (True) or the time is over (False)."""
        ...


class SystemClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def utc_offset_ns(self) -> int:
        return time.time_ns() - time.monotonic_ns()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


class FakeClock:
    """Stands still until somebody waits on it: then the time waited for has passed at once."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self._now_ns = now_ns
        self.waits_s: list[float] = []

    def now_ns(self) -> int:
        return self._now_ns

    def utc_offset_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waits_s.append(seconds)
        self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)
