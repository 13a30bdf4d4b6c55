"""One contract for all engines: order, isolation, deadlines, refusal when full, draining, closing, a worker that
fails; for those with threads also one that hangs, and for worker processes one that is killed. Real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.topics import shard_of
from scene_edge.server.child import Setup
from scene_edge.server.engine import Engine, InlineEngine
from scene_edge.server.hub import Hub
from scene_edge.server.pool import LocalEngine
from scene_edge.server.processes import ProcessEngine
from scene_edge.server.worker import Inbound
from tests.server.recorder import RecorderPlan

ROOM = 8
ENGINES = ("inline", "threads", "processes")
A, B, C = "a", "b", "d"
"""Cameras of which two processes have one or two each."""


class Bench:
    """An engine of two threads, or two processes, and what its workers publish."""

    def __init__(self, kind: str, folder: Path, *, fails: int = 0, room: int = 1000) -> None:
        self.kind, self.gate, self.hub = kind, folder / "gate", Hub()
        self.said: dict[str, list[bytes]] = defaultdict(list)
        self.pids: dict[str, set[int]] = defaultdict(set)
        plan = RecorderPlan(self.gate, fails)
        self.engine: Engine
        if kind == "processes":
            setup = Setup(plan, 3, room, 10.0, 300, 85)
            self.engine = self.hub.elsewhere = ProcessEngine(setup, self._hear, 2)
            return
        make = plan.open(self.hub, self._hear).make_worker
        if kind == "inline":
            self.engine = InlineEngine(make, max_cameras=3)
        else:
            self.engine = LocalEngine(make, max_cameras=3, queue_messages=room, threads=2)

    def _hear(self, camera: str, payload: bytes, pid: int) -> None:
        self.said[camera].append(payload)
        self.pids[camera].add(pid)

    def send(self, camera: str, payload: bytes, leaf: str = "video") -> str | None:
        return self.engine.submit(camera, Inbound(leaf, payload, time.monotonic()))

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline_s = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} did not come"
            time.sleep(0.002)

    def until_said(self, camera: str, payload: bytes) -> None:
        self.until(lambda: payload in self.said[camera], f"{payload!r} of {camera}")

    def view(self, camera: str) -> dict[str, Any]:
        return next(view for view in self.hub.cameras() if view["camera"] == camera)

    def close(self) -> None:
        self.gate.touch()
        self.engine.close()


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=ENGINES[1:])
def narrow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """One that does its work elsewhere, with room for few messages."""
    made = Bench(request.param, tmp_path, room=ROOM)
    yield made
    made.close()


def test_the_cameras_belong_to_both_processes() -> None:
    assert {shard_of(camera) % 2 for camera in (A, B, C)} == {0, 1}


def test_messages_of_a_camera_are_handled_in_order(bench: Bench) -> None:
    payloads = [str(number).encode() for number in range(200)]
    for payload in payloads:
        assert bench.send(A, payload) is None
        assert bench.send(B, payload) is None
    assert bench.engine.drain(20)
    assert bench.said[A] == bench.said[B] == payloads
    assert bench.engine.backlog(A) == 0


def test_there_is_a_limit_to_cameras(bench: Bench) -> None:
    for camera in (A, B, C):
        assert bench.send(camera, b"1") is None
    assert bench.send("one-more", b"1") == "too_many_cameras"
    assert bench.send(A, b"2") is None


def test_a_worker_that_fails_on_a_message_goes_on_with_the_next(bench: Bench) -> None:
    if bench.kind == "inline":
        pytest.skip("its caller hears of it at once")
    for payload in (b"1", b"bad", b"2"):
        bench.send(A, payload)
    assert bench.engine.drain(20)
    assert bench.said[A] == [b"1", b"2"]
    view = bench.view(A)
    assert view["server"]["dropped"] == {"worker_failed": 1}
    assert "ValueError: bad message" in view["degraded"][0]


def test_deadlines_pass_where_nothing_comes(bench: Bench) -> None:
    bench.send(A, b"late")
    bench.send(B, b"1")
    assert bench.engine.drain(20)
    assert bench.said[A] == [b"late", b"ticked"]


def test_closed_it_takes_nothing_and_its_workers_are_closed(bench: Bench) -> None:
    bench.send(A, b"1")
    bench.engine.drain(20)
    bench.engine.close()
    assert bench.send(A, b"2") == "stopping"
    assert bench.said[A] == [b"1", b"closed"]


def test_a_slow_camera_fills_its_own_queue_alone(narrow: Bench) -> None:
    assert narrow.send(A, b"slow") is None
    answers = [narrow.send(A, str(number).encode()) for number in range(ROOM + 2)]
    assert answers[: ROOM - 1] == [None] * (ROOM - 1)
    assert answers[ROOM + 1 :] == ["queue_full"], "one more where the first is in hand already"
    for camera in (B, C):
        assert narrow.send(camera, b"1") is None
        narrow.until_said(camera, b"1")
    assert not narrow.engine.drain(0.05)
    assert narrow.engine.backlog(A) >= ROOM - 1
    narrow.gate.touch()
    assert narrow.engine.drain(20)
    taken = [str(number).encode() for number, answer in enumerate(answers) if answer is None]
    assert narrow.said[A] == [b"slow", *taken]
    assert narrow.engine.backlog(A) == 0


def test_while_a_commit_is_under_way_nothing_of_its_camera_is_handled(narrow: Bench) -> None:
    for payload in (b"write", b"1", b"write", b"2"):
        narrow.send(A, payload)
    assert narrow.engine.drain(20)
    assert narrow.said[A] == [b"write", b"written", b"1", b"write", b"written", b"2"]


@pytest.mark.parametrize("kind", ENGINES[1:])
def test_a_worker_that_does_not_start_is_tried_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scene_edge.server.pool.RETRY_S", 0.01)
    bench = Bench(kind, tmp_path, fails=1 if kind == "processes" else 3)
    bench.send(A, b"1")
    assert bench.engine.drain(20)
    assert bench.said[A] == [b"1"]
    bench.close()


def test_threads_that_hang_are_not_counted_and_those_too_many_end(tmp_path: Path) -> None:
    plan, said = RecorderPlan(tmp_path / "gate"), list[str]()
    make = plan.open(Hub(), lambda camera, _payload, _pid: said.append(camera)).make_worker
    engine = LocalEngine(make, threads=2)
    hung = [f"slow-{number}" for number in range(6)]
    for camera in hung:
        engine.submit(camera, Inbound("video", b"slow", 0.0))
    engine.submit("quick", Inbound("video", b"1", 0.0))
    deadline_s = time.monotonic() + 30
    while "quick" not in said:
        assert time.monotonic() < deadline_s, "all threads hang"
        time.sleep(0.002)
    assert said == ["quick"]
    plan.gate.touch()
    assert engine.drain(20)
    while sum(thread.name == "engine" for thread in threading.enumerate()) > 2:
        assert time.monotonic() < deadline_s, "threads are left over"
        time.sleep(0.002)
    engine.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Bench]:
    made = Bench("processes", tmp_path)
    yield made
    made.close()


def test_a_camera_stays_with_its_process(processes: Bench) -> None:
    for camera in (A, B, C):
        for _ in range(5):
            processes.send(camera, b"1")
    assert processes.engine.drain(20)
    assert {len(processes.pids[camera]) for camera in (A, B, C)} == {1}
    assert len(set.union(*processes.pids.values())) == 2
    assert os.getpid() not in set.union(*processes.pids.values())


def test_a_killed_process_is_started_again_shown_and_counted(processes: Bench) -> None:
    """What it had is gone, as its camera will see from the acks; what cameras say but once it is told again."""
    processes.send(A, b"online", "status")
    processes.send(A, b"slow")
    for camera in (B, C):
        processes.send(camera, b"1")
        processes.until_said(camera, b"1")
    processes.until_said(A, b"online")
    (killed,) = processes.pids[A]
    assert processes.hub.health()["parts"]["workers"] == "ok"
    os.kill(killed, signal.SIGKILL)
    other = next(camera for camera in (B, C) if killed not in processes.pids[camera])
    processes.until(lambda: processes.hub.health()["parts"]["workers"] != "ok", "the news of it")
    assert processes.hub.health()["status"] == "failing"
    assert processes.send(other, b"2") is None
    processes.until_said(other, b"2")
    processes.until(lambda: processes.said[A] == [b"online", b"online"], "the status, once more")
    processes.gate.touch()
    assert processes.send(A, b"3") is None
    assert processes.engine.drain(20)
    assert processes.said[A] == [b"online", b"online", b"3"]
    health = processes.hub.health()
    assert health["status"] == "ok"
    assert sorted(worker["restarts"] for worker in health["workers"]) == [0, 1]
    assert killed not in {worker["pid"] for worker in health["workers"]}
    assert processes.view(A)["status_text"] == "3"


def test_a_process_that_stands_is_said_to_and_killed_in_the_end(
    processes: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.send(A, b"1")
    processes.until_said(A, b"1")
    assert processes.view(A)["degraded"] == []
    (stopped,) = processes.pids[A]
    monkeypatch.setattr("scene_edge.server.processes.ANSWER_S", 0.05)
    os.kill(stopped, signal.SIGSTOP)
    assert processes.view(A)["degraded"] == ["server: the worker process does not answer"]
    for member in processes.engine._members:  # type: ignore[attr-defined]
        member.kill_if_silent(0.0)
    processes.until(lambda: sum(worker["restarts"] for worker in processes.hub.health()["workers"]) >= 1, "a new one")


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Even where nobody has told them."""
    bench = Bench("processes", tmp_path)
    bench.send(A, b"1")
    assert bench.engine.drain(20)
    member = bench.engine._members[0]  # type: ignore[attr-defined]
    member._closing = True  # as if we were not there to start another
    member._link.close()
    assert member._process.wait(20) == 1
    bench.close()
