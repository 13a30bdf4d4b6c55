"""LocalEngine: a few threads take cameras that have something to do from one queue, whichever comes first.

A camera is in one pair of hands at a time, so its messages keep their order. A thread that is long in one call (a
network, a database that is locked) does not count: another is started in its place, and whichever is one too many then
ends. So a thousand cameras need a handful of threads, and one that hangs still holds back no other.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import structlog

from scene_edge.codec.errors import SceneEdgeError
from scene_edge.server.config import cores
from scene_edge.server.engine import Worker, WorkerFactory
from scene_edge.server.worker import Inbound

BURST = 16
"""Messages of one camera before the next one has its turn."""

DOZE_S = 0.002
"""A thread that has nothing to do looks again after so long, before it rests until it is called: calling costs more."""

PATIENCE_S = 0.02
"""A camera waits so long for the thread that is at work before another helps: waking one costs more than most turns."""

LONG_S = 0.1
"""A thread that is in one call for longer is not counted as one that will be free."""

RETRY_S = 1.0
"""After an error of a worker, or where it does not start."""

CLOSE_S = 30.0
CLOSERS = 32

RESTING, QUEUED, RUNNING = range(3)
AT_ONCE = 0.0

log = structlog.get_logger(__name__)


class _Lane:
    """A camera: what waits for its worker, and whether that is in somebody's hands. Guarded by the engine's lock."""

    __slots__ = ("again", "called_s", "camera", "due_s", "is_idle", "messages", "state", "worker")

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self.messages: deque[Inbound] = deque()
        self.worker: Worker | None = None
        self.state = RESTING
        self.again = False
        self.called_s = 0.0
        self.is_idle = True
        self.due_s: float | None = None


class LocalEngine:
    """See the module. `threads` of them work at once, besides those that are long in one call. `taken` hears of each
    message that was handled."""

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        max_cameras: int = 256,
        queue_messages: int = 512,
        threads: int | None = None,
        taken: Callable[[str], None] = lambda _camera: None,
    ) -> None:
        self._factory, self._max_cameras, self._queue_messages = factory, max_cameras, queue_messages
        self._taken = taken
        self._threads = threads or cores() + 2
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._rest = threading.Condition(self._lock)
        self._alarm = threading.Condition(self._lock)
        self._lanes: dict[str, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._due: list[tuple[float, int, _Lane]] = []
        self._number = count()
        self._busy_since_s: dict[threading.Thread, float] = {}
        self._members: set[threading.Thread] = set()
        self._resting: list[threading.Event] = []
        self._dozing = 0
        self._watching = False
        self._keeper = threading.Thread(target=self._keep_time, name="engine-time", daemon=True)
        self._keeper.start()

    def submit(self, camera: str, message: Inbound) -> str | None:
        if self._stop.is_set():
            return "stopping"
        with self._lock:
            lane = self._lanes.get(camera)
            if lane is None:
                if len(self._lanes) >= self._max_cameras:
                    return "too_many_cameras"
                lane = self._lanes[camera] = _Lane(camera)
            if len(lane.messages) >= self._queue_messages:
                return "queue_full"
            lane.messages.append(message)
            lane.is_idle = False
            self._call(lane)
        return None

    def backlog(self, camera: str) -> int:
        with self._lock:
            lane = self._lanes.get(camera)
            return len(lane.messages) if lane else 0

    def drain(self, timeout_s: float) -> bool:
        with self._lock:
            return self._rest.wait_for(lambda: all(lane.is_idle for lane in self._lanes.values()), timeout_s)

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            while self._resting:
                self._resting.pop().set()
            self._alarm.notify_all()
            members = list(self._members)
        self._keeper.join()
        deadline_s = time.monotonic() + CLOSE_S
        for thread in members:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        left = [(lane, lane.worker) for lane in self._lanes.values() if lane.worker and lane.state != RUNNING]
        with ThreadPoolExecutor(CLOSERS) as pool:  # so that what they commit last shares transactions
            list(pool.map(lambda pair: self._close(*pair), left))

    # Whose turn it is. Under the lock.

    def _call(self, lane: _Lane) -> None:
        """There is something to do for this camera."""
        if lane.state == RUNNING:
            lane.again = True
        elif lane.state == RESTING:
            lane.state = QUEUED
            self._ready.append(lane)
            lane.called_s = time.monotonic()
            if self._dozing >= len(self._ready):
                return
            if not self._busy_since_s and not self._dozing and len(self._ready) == 1:
                self._help()
            elif not self._watching:
                self._watching = True
                self._alarm.notify()

    def _help(self) -> None:
        """Another thread has work to do."""
        if self._resting:
            self._resting.pop().set()
        else:
            self._hire()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._members.add(thread)
        thread.start()

    def _wake(self, lane: _Lane) -> None:
        with self._lock:
            self._call(lane)

    def _set_alarm(self, lane: _Lane, due_s: float | None) -> None:
        """A lane is called at `due_s`. What was set for later stays in the heap, and is looked at once more."""
        lane.due_s = None
        if due_s is None:
            return
        due_s = lane.due_s = max(due_s, time.monotonic() + 1e-3)
        if not self._due or due_s < self._due[0][0]:
            self._alarm.notify()
        heapq.heappush(self._due, (due_s, next(self._number), lane))

    # Threads

    def _keep_time(self) -> None:
        """Calls cameras whose time has come, and sees to it that somebody has time for them."""
        with self._lock:
            while not self._stop.is_set():
                now_s = time.monotonic()
                while self._due and self._due[0][0] <= now_s:
                    due_s, _, lane = heapq.heappop(self._due)
                    if lane.due_s == due_s:
                        lane.due_s = None
                        self._call(lane)
                self._watching = bool(self._ready)
                waited = self._watching and now_s - self._ready[0].called_s >= PATIENCE_S
                if waited and len(self._members) - len(self._resting) - self._long(now_s) < self._threads:
                    self._help()
                wait_s = self._due[0][0] - now_s if self._due else None
                self._alarm.wait(PATIENCE_S if self._watching else wait_s)

    def _long(self, now_s: float) -> int:
        """Threads that nobody knows when they will be done."""
        return sum(now_s - since_s >= LONG_S for since_s in self._busy_since_s.values())

    def _run(self) -> None:
        me = threading.current_thread()
        while (lane := self._next(me)) is not None:
            due_s = self._turn(lane)
            with self._lock:
                del self._busy_since_s[me]
                self._put_down(lane, due_s)

    def _next(self, me: threading.Thread) -> _Lane | None:
        called = threading.Event()
        with self._lock:
            while not self._stop.is_set() and len(self._members) - self._long(time.monotonic()) <= self._threads:
                if self._ready:
                    lane = self._ready.popleft()
                    lane.state, lane.again = RUNNING, False
                    self._busy_since_s[me] = time.monotonic()
                    return lane
                self._rest_until(called)
            self._members.discard(me)
            return None

    def _rest_until(self, called: threading.Event) -> None:
        """Gives the lock away meanwhile."""
        self._dozing += 1
        self._lock.release()
        time.sleep(DOZE_S)
        self._lock.acquire()
        self._dozing -= 1
        if self._ready or self._stop.is_set():
            return
        called.clear()
        self._resting.append(called)
        self._lock.release()
        called.wait()
        self._lock.acquire()

    def _put_down(self, lane: _Lane, due_s: float | None) -> None:
        worker = lane.worker
        lane.state = RESTING
        if lane.again or due_s == AT_ONCE:
            self._call(lane)
            return
        self._set_alarm(lane, due_s)
        lane.is_idle = not lane.messages and worker is not None and worker.idle
        if lane.is_idle:
            self._rest.notify_all()

    def _turn(self, lane: _Lane) -> float | None:
        """When the next one is due if nothing calls; None: not before."""
        worker = lane.worker or self._start(lane)
        if worker is None:
            return time.monotonic() + RETRY_S
        try:
            for _ in range(BURST):
                if not worker.settle():
                    return worker.next_wakeup_s()
                with self._lock:
                    message = lane.messages.popleft() if lane.messages else None
                    self._busy_since_s[threading.current_thread()] = time.monotonic()
                if message is None:
                    worker.tick(time.monotonic())
                    return worker.next_wakeup_s()
                self._handle(lane, worker, message)
        except Exception as error:
            self._failed(lane, worker, error)
            return time.monotonic() + RETRY_S
        return AT_ONCE

    def _handle(self, lane: _Lane, worker: Worker, message: Inbound) -> None:
        try:
            worker.handle(message)
        except Exception as error:  # the camera's stream goes on, whatever one message did
            self._failed(lane, worker, error)
        self._taken(lane.camera)

    @staticmethod
    def _failed(lane: _Lane, worker: Worker, error: Exception) -> None:
        log.exception("worker failed", camera=lane.camera)
        worker.state.dropped("worker_failed")
        worker.state.degrade("worker", f"{type(error).__name__}: {error}")

    def _start(self, lane: _Lane) -> Worker | None:
        try:
            worker = self._factory(lane.camera, self._stop)
        except SceneEdgeError as error:
            log.error("worker does not start, trying again", camera=lane.camera, error=str(error))
            return None
        except Exception:  # a fault of ours; the thread is needed by others
            log.exception("worker does not start, trying again", camera=lane.camera)
            return None
        worker.wake = lambda: self._wake(lane)
        lane.worker = worker
        return worker

    @staticmethod
    def _close(lane: _Lane, worker: Worker) -> None:
        try:
            worker.close()
        except SceneEdgeError as error:
            log.error("worker did not close cleanly", camera=lane.camera, error=str(error))
