"""A batch on its way into the store: tried again while that fails, given up only to a newer owner or at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from scene_edge.codec.errors import StoreError
from scene_edge.server.clock import Clock
from scene_edge.server.group import Ticket

RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0


class Writing:
    """`begin` hands the batch over. `heard` is told of each error (None: of none), and says whether to try again.
    `stop` ends that."""

    def __init__(
        self,
        begin: Callable[[], Ticket],
        heard: Callable[[StoreError | None], bool],
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._begin, self._heard, self._stop, self._clock = begin, heard, stop, clock
        self._delay_s = RETRY_FIRST_S
        self._ticket: Ticket | None = begin()
        self.retry_at_s: float | None = None
        """When `poll` is due although nothing is heard of the store; None: not before."""
        self.given_up = False

    def poll(self) -> int | None:
        """The time of the commit in ns; None: not yet, or `given_up`."""
        if self._ticket is None and self.retry_at_s is not None and self._clock.now_s() >= self.retry_at_s:
            self._ticket, self.retry_at_s = self._begin(), None
        return None if self._ticket is None or self._ticket.answer is None else self._take(self._ticket.answer)

    def wait(self) -> int | None:
        """The time of the commit in ns, however long that takes; None: `given_up`."""
        while not self.given_up:
            if self._ticket is not None:
                committed_ns = self._take(self._ticket.wait())
                if committed_ns is not None:
                    return committed_ns
            elif self._stop.wait(max(0.0, (self.retry_at_s or 0.0) - self._clock.now_s())):
                self.given_up = True
            else:
                self._ticket, self.retry_at_s = self._begin(), None
        return None

    def _take(self, answer: int | StoreError) -> int | None:
        if isinstance(answer, int):
            self._heard(None)
            return answer
        self._ticket = None
        if self._heard(answer):
            self.retry_at_s = self._clock.now_s() + self._delay_s
            self._delay_s = min(self._delay_s * 2, RETRY_LAST_S)
        else:
            self.given_up = True
        return None
