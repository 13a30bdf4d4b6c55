"""Time, chance and processes: events in one queue, each in the process that it belongs to, which may end at any point.

A process (`Life`) is killed at an event, or in the middle of one: every crossing of a seam is a `point` at which a
doomed process gets no further. One that is held (suspended, or asleep in a call) has its events wait for it.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], None]
START_NS = 1_000_000_000_000
UTC_NS = 1_800_000_000_000_000_000


class Killed(BaseException):
    """The process ends here, whatever it was doing."""


class Violation(AssertionError):
    """Something came out that must not."""


@dataclass(eq=False)
class Life:
    """A process from start to end. `ended` is called once it is over."""

    name: str
    ended: Work
    alive: bool = True
    held: int = 0
    doom: int | None = None
    waiting: list[Work] = field(default_factory=list)


class World:
    """`at` plans, `run` lets time pass. `trace` tells what was done to whom. At `end_ns` nobody sleeps any more."""

    def __init__(self, seed: int, lasts_s: float) -> None:
        self.random = random.Random(seed)
        self.now_ns = START_NS
        self.end_ns = START_NS + round(lasts_s * 1e9)
        self.trace: list[str] = []
        self.events = 0
        self._queue: list[tuple[int, int, Life | None, Work]] = []
        self._planned = 0
        self._current: Life | None = None

    @property
    def now_s(self) -> float:
        return (self.now_ns - START_NS) / 1e9

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now_s:9.3f} s  {what}")

    def at(self, delay_s: float, life: Life | None, work: Work) -> int:
        """Do something later, in a process, if it still lives; when that is, in ns."""
        due_ns = self.now_ns + round(delay_s * 1e9)
        self._planned += 1
        heapq.heappush(self._queue, (due_ns, self._planned, life, work))
        return due_ns

    def run(self, seconds: float) -> None:
        until_ns = self.now_ns + round(seconds * 1e9)
        while self._queue and self._queue[0][0] <= until_ns:
            due_ns, _, life, work = heapq.heappop(self._queue)
            self.now_ns = max(self.now_ns, due_ns)
            self.events += 1
            self._do(life, work)
        self.now_ns = max(self.now_ns, until_ns)

    def _do(self, life: Life | None, work: Work) -> None:
        if life is None:
            work()
        elif life.alive and life.held:
            life.waiting.append(work)
        elif life.alive:
            before, self._current = self._current, life
            try:
                work()
            except Killed:
                self.kill(life)
            finally:
                self._current = before

    def kill(self, life: Life) -> None:
        if life.alive:
            self.note(f"{life.name} is killed")
            life.alive = False
            life.waiting.clear()
            life.ended()

    def hold(self, life: Life) -> None:
        life.held += 1

    def release(self, life: Life) -> None:
        """Whatever came meanwhile is done now, in order."""
        life.held -= 1
        if not life.held:
            waiting, life.waiting = life.waiting, []
            for work in waiting:
                self.at(0, life, work)

    def sleep(self, seconds: float) -> None:
        """The process that runs waits, and the others go on."""
        life = self._current
        assert life is not None
        if self.now_ns > self.end_ns:
            raise Violation(f"{life.name} does not get on")
        self.hold(life)
        self._current = None
        try:
            self.run(seconds)
        finally:
            self._current = life
            self.release(life)
        if not life.alive:
            raise Killed

    def point(self) -> None:
        """A seam is crossed: a doomed process may get no further."""
        life = self._current
        if life is not None and life.doom is not None:
            life.doom -= 1
            if life.doom < 0:
                life.doom = None
                raise Killed


class CameraClock:
    """A camera's: `boot_ns` moves its monotonic clock from boot to boot, `jump_ns` its idea of UTC (None: it stands in
    1970)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.boot_ns = 0
        self.jump_ns: int | None = 0

    def now_ns(self) -> int:
        self._world.point()
        return self._world.now_ns + self.boot_ns

    def utc_offset_ns(self) -> int:
        if self.jump_ns is None:
            return 1 - self._world.now_ns - self.boot_ns
        return UTC_NS - START_NS - self.boot_ns + self.jump_ns

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self._world.sleep(seconds)
        return event.is_set()


class ServerClock:
    """A server's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.jump_ns = 0

    def now_s(self) -> float:
        self._world.point()
        return self._world.now_ns / 1e9

    def utc_ns(self) -> int:
        self._world.point()
        return UTC_NS - START_NS + self._world.now_ns + self.jump_ns


class WorldEvent(threading.Event):
    """An event whose waits are the world's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._world.sleep(timeout or 0.0)
        return self.is_set()
