"""Who runs the workers: the Engine seam; in the caller's thread (InlineEngine), or one thread a camera (LocalEngine).

Contract of every engine: the messages of one camera are handled in the order of `submit` by one worker; a camera that
is slow or fails does not touch the others' order or results; `submit` never waits, and refuses where there is no room;
`drain` returns once everything submitted is committed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from scene_edge.codec.errors import SceneEdgeError
from scene_edge.server.worker import CameraWorker, Inbound

IDLE_WAKEUP_S = 1.0
START_RETRY_S = 1.0

WorkerFactory = Callable[[str, threading.Event], CameraWorker]
"""(camera, stop) -> its worker; called in the thread that will run it, and again if it raises a SceneEdgeError."""

log = structlog.get_logger(__name__)


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
        self._workers: dict[str, CameraWorker] = {}

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


class LocalEngine:
    """One thread and one bounded queue a camera."""

    def __init__(self, factory: WorkerFactory, *, max_cameras: int = 256, queue_messages: int = 512) -> None:
        self._factory, self._max_cameras, self._queue_messages = factory, max_cameras, queue_messages
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def submit(self, camera: str, message: Inbound) -> str | None:
        if self._stop.is_set():
            return "stopping"
        with self._lock:
            lane = self._lanes.get(camera)
            if lane is None:
                if len(self._lanes) >= self._max_cameras:
                    return "too_many_cameras"
                lane = self._lanes[camera] = _Lane(camera, self._factory, self._queue_messages, self._stop)
        return lane.put(message)

    def backlog(self, camera: str) -> int:
        with self._lock:
            lane = self._lanes.get(camera)
        return lane.messages.qsize() if lane else 0

    def drain(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            lanes = list(self._lanes.values())
        return all(lane.wait_idle(deadline_s) for lane in lanes)

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.close()


class _Lane:
    """A camera's queue, and the thread that empties it into the worker."""

    def __init__(self, camera: str, factory: WorkerFactory, size: int, stop: threading.Event) -> None:
        self.messages: queue.Queue[Inbound | None] = queue.Queue(size)
        self._camera, self._factory, self._stop = camera, factory, stop
        self._idle = threading.Condition()
        self._is_idle = True
        self._thread = threading.Thread(target=self._run, name=f"camera-{camera}", daemon=True)
        self._thread.start()

    def put(self, message: Inbound) -> str | None:
        with self._idle:
            self._is_idle = False
        try:
            self.messages.put_nowait(message)
        except queue.Full:
            return "queue_full"
        return None

    def wait_idle(self, deadline_s: float) -> bool:
        with self._idle:
            return self._idle.wait_for(lambda: self._is_idle, max(0.0, deadline_s - time.monotonic()))

    def close(self) -> None:
        try:
            self.messages.put_nowait(None)  # wakes a thread that waits; a busy one sees the event
        except queue.Full:
            log.debug("queue is full at stop", camera=self._camera)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        worker = self._start()
        if worker is None:
            return
        while not self._stop.is_set():
            try:
                self._step(worker)
            except Exception as error:  # the camera's stream goes on, whatever one message did
                log.exception("worker failed on a message", camera=self._camera)
                worker.state.dropped("worker_failed")
                worker.state.degrade("worker", f"{type(error).__name__}: {error}")
        try:
            worker.close()
        except SceneEdgeError as error:
            log.error("worker did not close cleanly", camera=self._camera, error=str(error))

    def _start(self) -> CameraWorker | None:
        while not self._stop.is_set():
            try:
                return self._factory(self._camera, self._stop)
            except SceneEdgeError as error:
                log.error("worker does not start, trying again", camera=self._camera, error=str(error))
                self._stop.wait(START_RETRY_S)
        return None

    def _step(self, worker: CameraWorker) -> None:
        try:
            message = self.messages.get_nowait()
        except queue.Empty:
            worker.tick(time.monotonic())
            self._tell_idle(worker)
            due_s = worker.next_wakeup_s()
            wait_s = IDLE_WAKEUP_S if due_s is None else min(max(due_s - time.monotonic(), 1e-3), IDLE_WAKEUP_S)
            try:
                message = self.messages.get(timeout=wait_s)
            except queue.Empty:
                return
        if message is not None:
            worker.handle(message)

    def _tell_idle(self, worker: CameraWorker) -> None:
        with self._idle:
            self._is_idle = worker.idle and self.messages.empty()
            if self._is_idle:
                self._idle.notify_all()
