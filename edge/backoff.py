"""Full-jitter back-off: a random wait between nothing and a limit that doubles, so that no fleet comes at once."""

from __future__ import annotations

import random

MAX_SPREAD_S = 300.0
CONNECTS_PER_S = 50
"""What a broker should see of a fleet that comes back after it: so many cameras a second, on average."""


class Backoff:
    """`next_s()` after each failure, and once after a loss; `reset()` after a success.

    `company`: how many others come back at the same time. The limit is never lower than it takes for all of them, so
    that they do not come at once to a broker that was away for a moment.
    """

    def __init__(self, base_s: float, cap_s: float, generator: random.Random) -> None:
        self._base_s, self._cap_s, self._generator = base_s, cap_s, generator
        self._failures = 0
        self.company = 1

    def next_s(self) -> float:
        limit_s = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._generator.uniform(0.0, max(limit_s, min(self.company / CONNECTS_PER_S, MAX_SPREAD_S)))

    def reset(self) -> None:
        self._failures = 0
