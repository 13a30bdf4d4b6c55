"""Workers that publish what they handle, so that it is seen wherever they run: for the contract of the engines.

"slow" waits until the gate, a file, is there; "bad" raises; "late" is said behind a tick; "write" is under way until
the store, here a timer, calls.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scene_edge.codec.errors import StoreError
from scene_edge.server.hub import Hub
from scene_edge.server.session import Publish
from scene_edge.server.worker import Inbound

LATE_S = 0.02


class Recorder:
    def __init__(self, camera: str, hub: Hub, publish: Publish, gate: Path) -> None:
        self.state = hub.state(camera)
        self.wake: Callable[[], None] = lambda: None
        self._camera, self._publish, self._gate = camera, publish, gate
        self._due_s: float | None = None
        self._writing = threading.Event()
        self._written = True

    def handle(self, message: Inbound) -> None:
        assert self._written, "a message while a commit is under way"
        self.state.told_status(message.payload.decode())
        if message.payload == b"bad":
            raise ValueError("bad message")
        if message.payload == b"slow":
            while not self._gate.exists():
                time.sleep(0.001)
        if message.payload == b"late":
            self._due_s = time.monotonic() + LATE_S
        if message.payload == b"write":
            self._written = False
            threading.Timer(LATE_S, self._store).start()
        self._say(message.payload)

    def settle(self) -> bool:
        if not self._written and self._writing.is_set():
            self._written = True
            self._writing.clear()
            self._say(b"written")
        return self._written

    def tick(self, now_s: float) -> None:
        if self._due_s is not None and now_s >= self._due_s:
            self._due_s = None
            self._say(b"ticked")

    def next_wakeup_s(self) -> float | None:
        return self._due_s

    @property
    def idle(self) -> bool:
        return self._due_s is None and self._written

    def close(self) -> None:
        self._say(b"closed")

    def _store(self) -> None:
        self._writing.set()
        self.wake()

    def _say(self, payload: bytes) -> None:
        self._publish(self._camera, payload, os.getpid())


class Desk:
    def __init__(self, plan: RecorderPlan, hub: Hub, publish: Publish) -> None:
        self._plan, self._hub, self._publish, self._fails = plan, hub, publish, plan.fails

    def make_worker(self, camera: str, _stop: threading.Event) -> Recorder:
        if self._fails:
            self._fails -= 1
            raise StoreError("database is locked") if self._fails else ValueError("a bug")
        return Recorder(camera, self._hub, self._publish, self._plan.gate)

    def close(self) -> None:
        self._publish("desk", b"closed", os.getpid())


@dataclass(frozen=True)
class RecorderPlan:
    """`fails`: how often a worker does not start."""

    gate: Path
    fails: int = 0

    def open(self, hub: Hub, publish: Publish) -> Desk:
        return Desk(self, hub, publish)
