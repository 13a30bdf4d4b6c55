"""ProcessEngine: the cameras shared out over worker processes (child.py), for more of them than one process of Python
bears.

The parent keeps the broker's connection, the page and the leases. A camera belongs to one process, by its shard. What
a process that dies had under way is not acknowledged: another is started in its place, claims the cameras with new
epochs, and asks them for what is missing. It is given the birth and the status of each, which cameras say but once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

import structlog

from scene_edge.codec.topics import shard_of
from scene_edge.server.child import Setup
from scene_edge.server.hub import rss_mb
from scene_edge.server.link import Link
from scene_edge.server.session import Publish
from scene_edge.server.worker import Inbound

ANSWER_S = 2.0
"""The page waits so long for a process, and then shows what it said last."""

SILENT_S = 60.0
"""A process that does not even say that it lives for so long is killed."""

RESTART_FIRST_S, RESTART_LAST_S = 0.1, 5.0
OFTEN, OFTEN_S = 30, 60.0
"""One that was ready is restarted at once when it dies, unless it does so this often in so long."""

CLOSE_S = 40.0
REMEMBERED = ("status", "birth")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Lane:
    """A camera: how many messages its process has not handled yet, and what a new process must hear first."""

    under_way: int = 0
    said: dict[str, Inbound] = field(default_factory=dict)


class ProcessEngine:
    """`processes` of them; `publish` is called by their threads here. It answers the page's questions (hub.py)."""

    def __init__(self, setup: Setup, publish: Publish, processes: int) -> None:
        self._max_cameras, self._queue_messages = setup.max_cameras, setup.queue_messages
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._count = 0
        self._members = [_Member(number, setup, publish) for number in range(processes)]

    def submit(self, camera: str, message: Inbound) -> str | None:
        if self._stop.is_set():
            return "stopping"
        member = self._member(camera)
        if not member.knows(camera):
            with self._lock:
                if self._count >= self._max_cameras:
                    return "too_many_cameras"
                self._count += 1
                count = self._count
            member.meet(camera)
            for each in self._members:
                each.company(count)
        return member.submit(camera, message, self._queue_messages)

    def backlog(self, camera: str) -> int:
        return self._member(camera).backlog(camera)

    def drain(self, timeout_s: float) -> bool:
        """What a process had that dies meanwhile comes again, from its camera."""
        deadline_s = time.monotonic() + timeout_s
        for member in self._members:
            while not answer_of(member.ask("drain", left_s := deadline_s - time.monotonic()), left_s):
                if time.monotonic() >= deadline_s:
                    return False
        return True

    def close(self) -> None:
        self._stop.set()
        for member in self._members:
            member.begin_close()
        deadline_s = time.monotonic() + CLOSE_S
        for member in self._members:
            member.finish_close(max(0.0, deadline_s - time.monotonic()))

    # The page's questions

    def cameras(self) -> list[dict[str, Any]]:
        asked = [(member, member.ask("cameras")) for member in self._members]
        return [view for member, future in asked for view in member.views(answer_of(future, ANSWER_S))]

    def pictures(self) -> dict[str, dict[str, Any]]:
        asked = [member.ask("pictures") for member in self._members]
        shown: dict[str, dict[str, Any]] = {}
        for future in asked:
            shown |= answer_of(future, ANSWER_S) or {}
        return shown

    def jpeg(self, camera: str, kind: str) -> tuple[bytes, int] | None:
        found: tuple[bytes, int] | None = answer_of(self._member(camera).ask("jpeg", camera, kind), ANSWER_S)
        return found

    def history(self, camera: str) -> list[dict[str, float | None]] | None:
        found: list[dict[str, float | None]] | None
        found = answer_of(self._member(camera).ask("history", camera), ANSWER_S)
        return found

    def processes(self) -> list[dict[str, Any]]:
        """Of each its state, pid, cameras, restarts and memory."""
        return [member.told() for member in self._members]

    def _member(self, camera: str) -> _Member:
        return self._members[shard_of(camera) % len(self._members)]


def answer_of(future: Future[Any], timeout_s: float) -> Any:
    """None where there is no answer in time."""
    try:
        return future.result(max(0.0, timeout_s))
    except FutureTimeout:
        return None


class _Member:
    """One process after the other, and the thread that hears it."""

    def __init__(self, number: int, setup: Setup, publish: Publish) -> None:
        self._number, self._setup, self._publish = number, setup, publish
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._asked: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._views: list[dict[str, Any]] = []
        self._company = 1
        self._restarts = 0
        self._why = ""
        self._died_s: deque[float] = deque(maxlen=OFTEN)
        self._ready = self._closing = False
        self._enough = threading.Event()
        self._process, self._link = self._start()
        self._heard_s = time.monotonic()
        self._hearing = threading.Thread(target=self._attend, name=f"worker-{number}", daemon=True)
        self._hearing.start()
        threading.Thread(target=self._watch, name=f"watch-{number}", daemon=True).start()

    def knows(self, camera: str) -> bool:
        with self._lock:
            return camera in self._lanes

    def meet(self, camera: str) -> None:
        with self._lock:
            self._lanes.setdefault(camera, _Lane())

    def company(self, count: int) -> None:
        with self._lock:
            self._company = count
            self._link.post(("company", count))

    def submit(self, camera: str, message: Inbound, room: int) -> str | None:
        with self._lock:
            lane = self._lanes[camera]
            if lane.under_way >= room:
                return "queue_full"
            if message.leaf in REMEMBERED:
                lane.said[message.leaf] = message
            lane.under_way += 1
            self._link.post(("message", camera, message))
        return None

    def backlog(self, camera: str) -> int:
        with self._lock:
            lane = self._lanes.get(camera)
            return lane.under_way if lane else 0

    def ask(self, question: str, *arguments: Any) -> Future[Any]:
        """Its answer is None if the process dies over it."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
            self._link.post(("ask", number, question, arguments))
        return future

    def views(self, answer: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        """What the process says of its cameras; where it does not, what it said last, and that."""
        if answer is not None:
            self._views = answer
            return answer
        why = "server: the worker process does not answer"
        return [_degraded(view, why) for view in self._views]

    def told(self) -> dict[str, Any]:
        with self._lock:
            pid = self._process.pid
            return {
                "state": "running" if self._ready else f"starting: {self._why}" if self._why else "starting",
                "pid": pid,
                "cameras": len(self._lanes),
                "restarts": self._restarts,
                "rss_mb": rss_mb(pid),
            }

    def begin_close(self) -> None:
        with self._lock:
            self._closing = True
            self._link.post(("close",))
        self._enough.set()

    def finish_close(self, timeout_s: float) -> None:
        self._hearing.join(timeout_s)
        if self._hearing.is_alive():
            log.error("worker process does not end and is killed", pid=self._process.pid)
            self._process.kill()
            self._hearing.join()

    # The process

    def _start(self) -> tuple[subprocess.Popen[bytes], Link]:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "scene_edge.server.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": path},
            )
        with contextlib.suppress(OSError):  # it is gone already, as will be seen
            ours.sendall(pickle.dumps(self._setup))
        return process, Link(ours)

    def _attend(self) -> None:
        """Hear the process, and start the next one where it dies."""
        delay_s = RESTART_FIRST_S
        while True:
            for items in self._link.received():
                self._heard_s = time.monotonic()
                for item in items:
                    self._hear(*item)
            self._link.close()
            status = self._process.wait()
            if self._closing:
                break
            log.error("worker process died", pid=self._process.pid, status=status, cameras=len(self._lanes))
            delay_s = RESTART_FIRST_S if self._may_hurry() else min(delay_s * 2, RESTART_LAST_S)
            if self._enough.wait(delay_s):
                break
            self._restart()
        self._forget_questions()

    def _may_hurry(self) -> bool:
        now_s = time.monotonic()
        self._died_s.append(now_s)
        return self._ready and (len(self._died_s) < OFTEN or self._died_s[0] < now_s - OFTEN_S)

    def _restart(self) -> None:
        self._forget_questions()
        with self._lock:
            self._ready = False
            self._restarts += 1
            self._process, self._link = self._start()
            self._heard_s = time.monotonic()
            self._link.post(("company", self._company))
            for camera, lane in self._lanes.items():
                lane.under_way = len(lane.said)
                for message in lane.said.values():
                    self._link.post(("message", camera, message))

    def _hear(self, kind: str, *rest: Any) -> None:
        if kind == "taken":
            with self._lock:
                self._lanes[rest[0]].under_way -= 1
        elif kind == "publish":
            self._publish(*rest)
        elif kind == "answer":
            number, value = rest
            with self._lock:
                future = self._asked.pop(number, None)
            if future is not None:
                future.set_result(value)
        elif kind in ("ready", "refused"):
            with self._lock:
                self._ready, self._why = kind == "ready", rest[0] if rest else ""

    def _forget_questions(self) -> None:
        with self._lock:
            asked, self._asked = self._asked, {}
        for future in asked.values():
            future.set_result(None)

    def _watch(self) -> None:
        period_s, looked_s = SILENT_S / 10, time.monotonic()
        while not self._enough.wait(period_s):
            last_s, looked_s = looked_s, time.monotonic()
            if looked_s > last_s + 2 * period_s:
                self._heard_s = looked_s  # we stood still ourselves, and have heard nobody
            self.kill_if_silent(SILENT_S)

    def kill_if_silent(self, silent_s: float) -> None:
        """A process that stands still holds up its cameras, and, in the middle of a commit, everybody."""
        if time.monotonic() > self._heard_s + silent_s and self._process.poll() is None:
            log.error("worker process is silent and is killed", pid=self._process.pid)
            self._process.kill()


def _degraded(view: Mapping[str, Any], why: str) -> dict[str, Any]:
    status = "degraded" if view["status"] == "online" else view["status"]
    return {**view, "status": status, "degraded": [*view["degraded"], why]}
