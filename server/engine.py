"""Who runs the workers: the Engine seam, in the caller's thread (InlineEngine) or in a pool of threads (LocalEngine).

Contract of every engine: the messages of one camera are handled in the order of `submit` by one worker; a camera that
is slow or fails does not touch the others' order or results; `submit` never waits, and refuses where there is no room;
`drain` returns once everything submitted is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from scene_edge.server.state import CameraState
from scene_edge.server.worker import Inbound


class Worker(Protocol):
    """What an engine asks of a camera's worker (worker.py). One thread at a time; not always the same."""

    wake: Callable[[], None]
    """Set by the engine; called by any thread when `settle` is worth a try."""

    @property
    def state(self) -> CameraState: ...

    @property
    def idle(self) -> bool: ...

    def handle(self, message: Inbound) -> None: ...

    def settle(self) -> bool:
        """False: a commit is under way, and `handle` would wait for it."""
        ...

    def tick(self, now_s: float) -> None: ...

    def next_wakeup_s(self) -> float | None: ...

    def close(self) -> None: ...


WorkerFactory = Callable[[str, threading.Event], Worker]
"""(camera, stop) -> its worker; called by the thread that runs it first, and again if it raises a SceneEdgeError."""


class Engine(Protocol):
    def submit(self, camera: str, message: Inbound) -> str | None:
        """None: taken. Else the reason why not: "queue_full", "too_many_cameras" or "stopping"."""
        ...

    def backlog(self, camera: str) -> int:
        """Messages of a camera that are submitted and not handled yet."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Wait until every worker is idle; False if that took too long."""
        ...

    def close(self) -> None:
        """Stop every worker; what is committed stays, what is not is not acknowledged."""
        ...


class InlineEngine:
    """Everything in the caller's thread, at once: for tests and for replaying recordings."""

    def __init__(self, factory: WorkerFactory, max_cameras: int = 256) -> None:
        self._factory, self._max_cameras = factory, max_cameras
        self._stop = threading.Event()
        self._workers: dict[str, Worker] = {}

    def submit(self, camera: str, message: Inbound) -> str | None:
        if self._stop.is_set():
            return "stopping"
        worker = self._workers.get(camera)
        if worker is None:
            if len(self._workers) >= self._max_cameras:
                return "too_many_cameras"
            worker = self._workers[camera] = self._factory(camera, self._stop)
        worker.handle(message)
        return None

    def tick(self, now_s: float) -> None:
        """Let the deadlines of every camera pass."""
        for worker in self._workers.values():
            worker.tick(now_s)

    def backlog(self, camera: str) -> int:
        return 0

    def drain(self, timeout_s: float) -> bool:
        self.tick(time.monotonic() + timeout_s)
        return all(worker.idle for worker in self._workers.values())

    def close(self) -> None:
        self._stop.set()
        for worker in self._workers.values():
            worker.close()
