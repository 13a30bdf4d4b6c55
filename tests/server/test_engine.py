"""One contract for both engines: order, isolation, refusal when full, draining, and a worker that fails."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from scene_edge.codec.errors import StoreError
from scene_edge.server.engine import Engine, InlineEngine
from scene_edge.server.pool import LocalEngine
from scene_edge.server.state import CameraState
from scene_edge.server.worker import Inbound


class Recorder:
    """A worker's outside: remembers what it handles; "slow" waits for `gate`, "bad" raises."""

    def __init__(self, camera: str, log: dict[str, list[bytes]], gate: threading.Event) -> None:
        self.camera, self.state, self._log, self._gate = camera, CameraState(camera), log, gate
        self.closed = False
        self.wake: Callable[[], None] = lambda: None

    def settle(self) -> bool:
        return True

    def handle(self, message: Inbound) -> None:
        if message.payload == b"bad":
            raise ValueError("bad message")
        if message.payload == b"slow":
            self._gate.wait(20)
        self._log[self.camera].append(message.payload)

    def tick(self, now_s: float) -> None:
        pass

    def next_wakeup_s(self) -> float | None:
        return None

    @property
    def idle(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, make: Callable[..., Engine]) -> None:
        self.log: dict[str, list[bytes]] = defaultdict(list)
        self.gate = threading.Event()
        self.workers: dict[str, Recorder] = {}
        self.engine = make(self.factory, max_cameras=3)

    def factory(self, camera: str, stop: threading.Event) -> Any:
        worker = self.workers[camera] = Recorder(camera, self.log, self.gate)
        return worker

    def send(self, camera: str, payload: bytes) -> str | None:
        return self.engine.submit(camera, Inbound("video", payload, time.monotonic()))


@pytest.fixture(params=[InlineEngine, LocalEngine])
def bench(request: pytest.FixtureRequest) -> Any:
    made = Bench(request.param)
    yield made
    made.gate.set()
    made.engine.close()


def test_messages_of_a_camera_are_handled_in_order(bench: Bench) -> None:
    payloads = [str(number).encode() for number in range(200)]
    for payload in payloads:
        assert bench.send("a", payload) is None
        assert bench.send("b", payload) is None
    assert bench.engine.drain(20)
    assert bench.log["a"] == bench.log["b"] == payloads
    assert bench.engine.backlog("a") == 0


def test_there_is_a_limit_to_cameras(bench: Bench) -> None:
    for camera in ("a", "b", "c"):
        assert bench.send(camera, b"1") is None
    assert bench.send("d", b"1") == "too_many_cameras"
    assert bench.send("a", b"2") is None


def test_closed_it_takes_nothing_and_its_workers_are_closed(bench: Bench) -> None:
    bench.send("a", b"1")
    bench.engine.drain(20)
    bench.engine.close()
    assert bench.send("a", b"2") == "stopping"
    assert bench.workers["a"].closed


def test_a_slow_camera_fills_its_own_queue_alone() -> None:
    bench = Bench(lambda factory, max_cameras: LocalEngine(factory, max_cameras=max_cameras, queue_messages=8))
    bench.send("slow", b"slow")
    while bench.engine.backlog("slow"):
        time.sleep(0.001)
    for number in range(8):
        assert bench.send("slow", str(number).encode()) is None
    assert bench.send("slow", b"9") == "queue_full"
    assert bench.send("fast", b"1") is None
    while not bench.log["fast"]:
        time.sleep(0.001)
    assert not bench.engine.drain(0.05)
    bench.gate.set()
    assert bench.engine.drain(20)
    assert bench.log["slow"] == [b"slow", *(str(number).encode() for number in range(8))]
    bench.engine.close()


def test_a_worker_that_fails_on_a_message_goes_on_with_the_next() -> None:
    bench = Bench(LocalEngine)
    for payload in (b"1", b"bad", b"2"):
        bench.send("a", payload)
    assert bench.engine.drain(20)
    assert bench.log["a"] == [b"1", b"2"]
    view = bench.workers["a"].state.view()
    assert view["server"]["dropped"] == {"worker_failed": 1}
    assert "ValueError: bad message" in view["degraded"][0]
    bench.engine.close()


def test_a_worker_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.server.pool.RETRY_S", 0.01)
    log: dict[str, list[bytes]] = defaultdict(list)
    tries: list[str] = []

    def factory(camera: str, stop: threading.Event) -> Any:
        tries.append(camera)
        if len(tries) < 3:
            raise StoreError("database is locked")
        return Recorder(camera, log, threading.Event())

    engine = LocalEngine(factory)
    engine.submit("a", Inbound("video", b"1", 0.0))
    assert engine.drain(20)
    assert log["a"] == [b"1"]
    engine.close()
