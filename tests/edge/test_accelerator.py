"""F10: an accelerator that hangs, or crashes again and again, costs its own work, not the video; and it is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scene_edge.codec.errors import EngineError
from scene_edge.codec.planes import Planes
from scene_edge.codec.topics import Topics
from scene_edge.edge.camera import Camera
from scene_edge.edge.clock import FakeClock
from scene_edge.edge.guarded import GuardedSession
from scene_edge.edge.revival import FAILURES, Revival
from scene_edge.edge.scene import SceneFilter
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.transport import MemoryTransport
from scene_edge.inference.seam import TensorInfo
from tests.edge.conftest import Configure
from tests.waiting import wait_until


class Stuck:
    """A session whose runs wait for `gate`, raise what `error` says, or give the input back."""

    engine, precision, device = "npu", "int8", "NPU"
    fallbacks: tuple[str, ...] = ()
    proven = True

    def __init__(self) -> None:
        self.inputs = self.outputs = {"x": TensorInfo((2,), np.dtype(np.uint8))}
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.closed = 0

    def run(self, inputs: Any) -> dict[str, Any]:
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return dict(inputs)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.gate.set()


X = {"x": np.zeros(2, np.uint8)}


def test_a_guarded_session_is_the_session_that_it_guards(stuck: Stuck) -> None:
    guarded = GuardedSession(stuck, 20.0)
    assert (guarded.engine, guarded.precision, guarded.device, guarded.proven) == ("npu", "int8", "NPU", True)
    assert guarded.run(X)["x"] is X["x"]
    stuck.error = EngineError("device lost")
    with pytest.raises(EngineError, match="device lost"):
        guarded.run(X)
    stuck.error = None
    assert guarded.run(X)
    guarded.close()
    guarded.close()
    assert stuck.closed == 1
    with pytest.raises(EngineError, match="closed"):
        guarded.run(X)


def test_a_run_that_hangs_is_an_error_in_time_and_the_session_is_done_with(stuck: Stuck) -> None:
    guarded = GuardedSession(stuck, 0.05)
    stuck.gate.clear()
    with pytest.raises(EngineError, match="npu hangs"):
        guarded.run(X)
    with pytest.raises(EngineError, match="closed"):
        guarded.run(X)
    guarded.close()
    assert stuck.closed == 0, "nobody can close what hangs"
    stuck.gate.set()
    wait_until(lambda: stuck.closed == 1)


class Said:
    def __init__(self) -> None:
        self.now: list[str] = []

    def revival(self, reopen: Any, clock: FakeClock) -> Revival[Stuck]:
        return Revival("scene", reopen, clock, self.now.append, self.now.remove)


def test_what_failed_is_opened_again_and_said_to_be_well() -> None:
    said, clock, opened = Said(), FakeClock(), Stuck()
    revival = said.revival(lambda: opened, clock)
    old = Stuck()
    revival.failed(old, EngineError("device lost"))
    assert said.now == ["no scene: device lost"]
    wait_until(revival.ready)
    assert old.closed == 1
    assert revival.take() is opened
    assert revival.take() is None
    assert said.now == []
    assert revival.failures == 1


def test_five_failures_within_a_minute_are_enough_and_spread_out_they_are_not() -> None:
    said, clock = Said(), FakeClock()
    revival = said.revival(Stuck, clock)
    for _ in range(2 * FAILURES):
        revival.failed(None, EngineError("device lost"))
        wait_until(revival.ready)
        assert revival.take() is not None
        clock.advance(20)
    assert said.now == []
    for _ in range(FAILURES - 3):
        revival.failed(None, EngineError("device lost"))
        wait_until(revival.ready)
        revival.take()
    revival.failed(None, EngineError("device lost"))
    assert not revival.ready()
    assert revival.take() is None
    assert said.now == ["no scene: device lost (given up: it failed 5 times within 60 s)"]
    assert revival.failures == 2 * FAILURES + FAILURES - 2


def test_what_does_not_open_any_more_fails_again_until_it_is_given_up() -> None:
    said, clock, tries = Said(), FakeClock(), []

    def reopen() -> Stuck:
        tries.append(1)
        raise RuntimeError("no such device")

    revival = said.revival(reopen, clock)
    revival.failed(None, EngineError("device lost"))
    wait_until(lambda: not revival.ready() and revival.failures == FAILURES)
    assert len(tries) == FAILURES - 1
    (reason,) = said.now
    assert "RuntimeError: no such device" in reason
    assert "given up" in reason


def test_an_opening_that_hangs_has_failed_too() -> None:
    said, clock, gate = Said(), FakeClock(), threading.Event()

    def reopen() -> Stuck:
        gate.wait(30)
        return Stuck()

    revival = said.revival(reopen, clock)
    revival.failed(None, EngineError("device lost"))
    clock.advance(200)
    assert not revival.ready()
    assert revival.failures == 2
    assert "does not open" in said.now[0]
    revival.close()
    gate.set()


# The camera as a whole


class Watcher:
    """Takes what a camera says, and acknowledges its pictures at once."""

    def __init__(self) -> None:
        self.transport = MemoryTransport()

    def last(self, leaf: str) -> dict[str, Any]:
        topic = getattr(Topics("camera-1"), leaf)
        found = [message.payload for message in self.transport.sent if message.topic == topic]
        return dict(json.loads(found[-1])) if found else {}

    def pictures(self) -> int:
        return sum(message.topic == Topics("camera-1").video for message in self.transport.sent)


def run(camera: Camera) -> threading.Thread:
    camera.open()
    thread = threading.Thread(target=camera.run)
    thread.start()
    return thread


@pytest.mark.parametrize("part", ["scene", "semantics"])
def test_video_goes_on_while_an_accelerator_hangs_and_the_camera_says_so_and_recovers(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The network of one part hangs once, longer than it may; another one is opened and works."""
    gate, hung = threading.Event(), threading.Event()
    guarded = GuardedSession._work

    def work(self: GuardedSession, session: Any) -> None:
        inner = session.run

        def hang(inputs: Any) -> Any:
            mine = "lossy" in inputs if part == "semantics" else "thumb" in inputs
            if mine and not hung.is_set():
                hung.set()
                gate.wait(60)
            return inner(inputs)

        session.run = hang
        guarded(self, session)

    monkeypatch.setattr(GuardedSession, "_work", work)
    watcher = Watcher()
    settings = ("source.pace=realtime", "source.fps=20", "watchdog.hang_s=0.5", "mqtt.drain_s=0")
    camera = Camera(configure(*settings), transport=watcher.transport)
    thread = run(camera)
    try:
        wait_until(hung.is_set)
        wait_until(lambda: any(f"no {part}" in reason for reason in watcher.last("birth").get("degraded", [])))
        before = watcher.pictures()
        wait_until(lambda: watcher.last("ledger")["faults"].get(f"{part}_failed") == 1)
        wait_until(lambda: watcher.pictures() > before + 3)
        wait_until(lambda: watcher.last("birth")["degraded"] == [])
        assert watcher.last("birth")["semantics"] is True
        coded = camera.ledger.snapshot().semantics_coded
        wait_until(lambda: camera.ledger.snapshot().semantics_coded > coded)
    finally:
        gate.set()
        camera.stop()
        thread.join()
        camera.close()
    assert camera.ledger.snapshot().balanced


def test_five_crashes_leave_h264_alone_and_the_camera_says_so(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> Planes:
        raise EngineError("device lost")

    monkeypatch.setattr(SceneFilter, "apply", crash)
    monkeypatch.setattr(SemanticEncoder, "encode", crash)
    monkeypatch.setattr("scene_edge.edge.revival.PAUSE_S", 0.01)
    watcher = Watcher()
    settings = ("source.pace=realtime", "source.fps=20", "mqtt.drain_s=0")
    camera = Camera(configure(*settings), transport=watcher.transport)
    thread = run(camera)
    try:
        wait_until(lambda: sum("given up" in reason for reason in watcher.last("birth").get("degraded", [])) == 2)
        before = watcher.pictures()
        wait_until(lambda: watcher.pictures() > before + 3)
        wait_until(lambda: watcher.last("ledger")["faults"] == {"scene_failed": 5, "semantics_failed": 5})
        assert watcher.last("birth")["semantics"] is False
    finally:
        camera.stop()
        thread.join()
        camera.close()
    snapshot = camera.ledger.snapshot()
    assert snapshot.balanced
    assert snapshot.semantics_coded == 0
