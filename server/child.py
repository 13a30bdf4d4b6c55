"""A worker process: `python -m scene_edge.server.child FD`, started by ProcessEngine (processes.py) and by nobody else.

It holds a share of the cameras: their workers, networks and states, in a LocalEngine. What it commits it writes
itself, under its parent's lease and epochs of its own; what it has to say on MQTT it gives to its parent. It ends with
its parent, whatever ends that.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from scene_edge.codec.errors import SceneEdgeError
from scene_edge.server.engine import Worker
from scene_edge.server.hub import Hub
from scene_edge.server.link import Link
from scene_edge.server.pool import LocalEngine
from scene_edge.server.session import Publish
from scene_edge.server.worker import Inbound

ASKED_AT_ONCE = 4

log = structlog.get_logger(__name__)


class Workplace(Protocol):
    """Where workers are made, and what they share."""

    def make_worker(self, camera: str, stop: threading.Event) -> Worker: ...

    def close(self) -> None: ...


class Plan(Protocol):
    """How to furnish one; picklable."""

    def open(self, hub: Hub, publish: Publish) -> Workplace:
        """Raises a SceneEdgeError."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker process is told at its start."""

    plan: Plan
    max_cameras: int
    queue_messages: int
    silent_after_s: float
    history_s: int
    jpeg_quality: int
    log_level: int = logging.INFO


class Child:
    """Its half of the talk: ("message", camera, Inbound), ("company", count), ("ask", number, question, args) and
    ("close",) come in; ("taken", camera), ("publish", topic, payload, qos), ("answer", number, value), ("ready",) or
    ("refused", why) go out."""

    def __init__(self, link: Link, setup: Setup) -> None:
        self._link, self._company = link, 1
        self._hub = Hub(
            silent_after_s=setup.silent_after_s,
            history_s=setup.history_s,
            jpeg_quality=setup.jpeg_quality,
            company=lambda: self._company,
        )
        self._workplace = setup.plan.open(self._hub, self._publish)
        self._engine = LocalEngine(
            self._workplace.make_worker,
            max_cameras=setup.max_cameras,
            queue_messages=setup.queue_messages,
            taken=lambda camera: link.post(("taken", camera)),
        )
        self._questions: dict[str, Callable[..., Any]] = {
            "cameras": self._hub.cameras,
            "pictures": self._hub.pictures,
            "jpeg": self._hub.jpeg,
            "history": self._hub.history,
            "drain": self._engine.drain,
        }
        self._answering = ThreadPoolExecutor(ASKED_AT_ONCE, "answers")
        self._hub.start()
        link.post(("ready",))

    def hear(self, items: list[tuple[Any, ...]]) -> bool:
        """Whether there is more to come."""
        for kind, *rest in items:
            if kind == "message":
                self._submit(*rest)
            elif kind == "company":
                (self._company,) = rest
            elif kind == "ask":
                self._answering.submit(self._answer, *rest)
            elif kind == "close":
                self._close()
                return False
        return True

    def _submit(self, camera: str, message: Inbound) -> None:
        reason = self._engine.submit(camera, message)
        if reason is not None:  # its parent counts what is under way, and would not have sent it
            self._hub.state(camera).dropped(reason)
            self._link.post(("taken", camera))

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        self._link.post(("publish", topic, payload, qos))

    def _answer(self, number: int, question: str, arguments: tuple[Any, ...]) -> None:
        try:
            value = self._questions[question](*arguments)
        except Exception:
            log.exception("a question failed", question=question)
            value = None
        self._link.post(("answer", number, value))

    def _close(self) -> None:
        self._engine.close()
        self._hub.stop()
        self._workplace.close()
        self._link.close()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a whole group may get them: our parent says when to end
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    heard = link.received()
    try:
        setup: Setup = next(heard)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(setup.log_level))
        child = Child(link, setup)
    except StopIteration:
        os._exit(1)
    except SceneEdgeError as error:
        log.error("worker process does not start", error=str(error))
        link.post(("refused", str(error)))
        link.close()
        os._exit(1)
    for items in heard:
        if not child.hear(items):
            return
    os._exit(1)  # our parent is gone, and whoever comes after it must not wait for us


if __name__ == "__main__":
    main()
