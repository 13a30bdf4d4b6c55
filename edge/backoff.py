"""Full-jitter back-off: a random wait between nothing and a limit that doubles, so that no fleet comes at once."""

from __future__ import annotations

import random


class Backoff:
    """`next_s()` after each failure, `reset()` after a success."""

    def __init__(self, base_s: float, cap_s: float, generator: random.Random) -> None:
        self._base_s, self._cap_s, self._generator = base_s, cap_s, generator
        self._failures = 0

    def next_s(self) -> float:
        limit_s = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._generator.uniform(0.0, limit_s)

    def reset(self) -> None:
        self._failures = 0
