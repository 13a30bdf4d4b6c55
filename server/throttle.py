"""Who may pass to the engine now: a camera that sends too much waits behind its own door, never before another's.

Every camera has a token bucket: `rate` messages a second, and as many at once as its door holds. What exceeds it, and
what its worker has no room for, is held back in order, up to a limit, and then dropped; the camera still has it, for
nothing of it was acknowledged. Pure: the clock is an argument, and the engine a function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scene_edge.server.worker import Inbound

Submit = Callable[[str, Inbound], str | None]
"""Give a message to a camera's worker: None if it was taken, else why not. Never waits."""

FULL = "queue_full"


@dataclass(slots=True)
class _Door:
    tokens: float
    filled_s: float
    held: deque[Inbound] = field(default_factory=deque)
    too_fast: bool = False


class Throttle:
    """For one thread at a time. `told` hears of a camera that begins, or ceases, to send more than `rate` a second."""

    def __init__(self, submit: Submit, rate: float, room: int, told: Callable[[str, bool], None]) -> None:
        self._submit, self._rate, self._room, self._told = submit, rate, room, told
        self._doors: dict[str, _Door] = {}
        self._waiting: dict[str, None] = {}

    def offer(self, camera: str, message: Inbound, now_s: float) -> str | None:
        """None: it has passed, or is held. Else why it was dropped."""
        door = self._doors.get(camera)
        if door is None:
            door = self._doors[camera] = _Door(float(self._room), now_s)
        if not door.held:
            reason = self._pass(camera, door, message, now_s)
            if reason != FULL:
                return reason
        if len(door.held) >= self._room:
            return "throttled" if door.too_fast else FULL
        door.held.append(message)
        self._waiting[camera] = None
        return None

    @property
    def holds(self) -> bool:
        """Whether `release` has anything to do."""
        return bool(self._waiting)

    def release(self, now_s: float) -> list[tuple[str, str]]:
        """Let through what may pass by now, one of each camera in turn; (camera, why) for each that was dropped."""
        dropped: list[tuple[str, str]] = []
        turn = list(self._waiting)
        while turn:
            turn = [camera for camera in turn if self._release_one(camera, now_s, dropped)]
        return dropped

    def _release_one(self, camera: str, now_s: float, dropped: list[tuple[str, str]]) -> bool:
        """Whether there may be another to let through."""
        door = self._doors[camera]
        reason = self._pass(camera, door, door.held[0], now_s)
        if reason == FULL:
            return False
        door.held.popleft()
        if reason is not None:
            dropped.append((camera, reason))
        if door.held:
            return True
        del self._waiting[camera]
        self._tell(camera, door, False)
        return False

    def _pass(self, camera: str, door: _Door, message: Inbound, now_s: float) -> str | None:
        door.tokens = min(float(self._room), door.tokens + (now_s - door.filled_s) * self._rate)
        door.filled_s = now_s
        if door.tokens < 1:
            self._tell(camera, door, True)
            return FULL
        reason = self._submit(camera, message)
        if reason != FULL:
            door.tokens -= 1
        return reason

    def _tell(self, camera: str, door: _Door, too_fast: bool) -> None:
        if door.too_fast != too_fast:
            door.too_fast = too_fast
            self._told(camera, too_fast)
