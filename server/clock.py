"""Time as a seam: the monotonic clock, by which everything is awaited, and UTC, which may jump and decides nothing."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Monotonic time."""
        ...

    def utc_ns(self) -> int: ...


class SystemClock:
    def now_s(self) -> float:
        return time.monotonic()

    def utc_ns(self) -> int:
        return time.time_ns()


SYSTEM = SystemClock()
