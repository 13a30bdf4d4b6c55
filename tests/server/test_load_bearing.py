"""What carries a thousand cameras: shared transactions, doors, small memories. No clock, no broker."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.errors import StoreError
from scene_edge.server.group import GroupCommit
from scene_edge.server.history import History, Latencies
from scene_edge.server.state import CameraState
from scene_edge.server.store import Batch, FencedError, FrameResult, Store
from scene_edge.server.throttle import FULL, Throttle
from scene_edge.server.worker import Inbound

SESSION = "00000000000000ff"


def in_threads(count: int, work: object) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_who_comes_while_a_group_is_written_is_the_next_group() -> None:
    groups: list[list[int]] = []
    gate, busy = threading.Event(), threading.Event()

    def write(requests: Sequence[int]) -> list[int | StoreError]:
        groups.append(list(requests))
        busy.set()
        gate.wait(20)
        return [request * 10 for request in requests]

    group: GroupCommit[int] = GroupCommit(write)
    told: list[int] = []
    tickets = {100: group.submit(100, lambda: told.append(100))}
    busy.wait(20)
    tickets |= {number: group.submit(number, lambda number=number: told.append(number)) for number in range(20)}  # type: ignore[misc]
    assert [ticket.answer for ticket in tickets.values()] == [None] * 21, "nobody waits"
    gate.set()
    assert {number: ticket.wait() for number, ticket in tickets.items()} == {n: n * 10 for n in tickets}
    group.close()
    assert groups == [[100], list(range(20))]
    assert told == [100, *range(20)]


def test_a_group_that_fails_is_told_and_the_next_one_is_written() -> None:
    def write(requests: Sequence[int]) -> list[int | StoreError]:
        if 1 in requests:
            raise ValueError("a bug")
        return list(requests)

    group: GroupCommit[int] = GroupCommit(write)
    failed = group.submit(1).wait()
    assert isinstance(failed, StoreError)
    assert "a bug" in str(failed)
    assert group.submit(5).wait() == 5
    group.close()
    assert isinstance(group.submit(6).wait(), StoreError), "it is closed"


def test_what_the_database_refuses_alone_does_not_harm_the_group() -> None:
    gate = threading.Event()

    def write(requests: Sequence[int]) -> list[int | StoreError]:
        gate.wait(20)
        if 7 in requests:
            raise StoreError("seven is refused")
        return list(requests)

    group: GroupCommit[int] = GroupCommit(write)
    tickets = [group.submit(number) for number in range(20)]
    gate.set()
    answers = [ticket.wait() for ticket in tickets]
    assert [number for number, answer in enumerate(answers) if isinstance(answer, StoreError)] == [7]
    group.close()


def test_cameras_that_commit_at_once_are_all_stored_and_the_fenced_one_alone_is_not(tmp_path: object) -> None:
    store = Store(f"sqlite:///{tmp_path}/results.db", grouped=True)
    epochs = {f"cam-{number}": store.claim(f"cam-{number}") for number in range(20)}
    store.claim("cam-3")
    fenced = []

    def commit(number: int) -> None:
        camera = f"cam-{number}"
        for seq in range(5):
            frame = FrameResult(seq, 5, "unpaired", "none", 100, 0)
            if isinstance(store.begin(camera, epochs[camera], Batch(SESSION, seq, [frame])).wait(), FencedError):
                fenced.append(camera)

    in_threads(20, commit)
    assert fenced == ["cam-3"] * 5
    assert [store.count_frames(camera) for camera in epochs] == [5 * (camera != "cam-3") for camera in epochs]
    assert store.last_seq("cam-4", SESSION) == 4
    store.close()


class Doors:
    """A throttle before an engine with room for so many messages of each camera."""

    def __init__(self, rate: float = 10.0, room: int = 5, engine_room: int = 1000) -> None:
        self.passed: list[tuple[str, bytes]] = []
        self.told: list[tuple[str, bool]] = []
        self.engine_room = engine_room
        self.throttle = Throttle(self.submit, rate, room, lambda camera, fast: self.told.append((camera, fast)))

    def submit(self, camera: str, message: Inbound) -> str | None:
        if sum(name == camera for name, _ in self.passed) >= self.engine_room:
            return FULL
        self.passed.append((camera, message.payload))
        return None

    def offer(self, camera: str, number: int, now_s: float) -> str | None:
        return self.throttle.offer(camera, Inbound("video", b"%d" % number, now_s), now_s)


def test_a_camera_that_is_too_fast_waits_in_order_is_told_of_and_touches_no_other() -> None:
    doors = Doors()
    answers = [doors.offer("hot", number, 0.0) for number in range(12)]
    assert answers == [None] * 10 + ["throttled"] * 2, "five pass, five are held, the rest is dropped"
    assert [payload for _, payload in doors.passed] == [b"0", b"1", b"2", b"3", b"4"]
    assert doors.offer("calm", 0, 0.0) is None
    assert doors.passed[-1] == ("calm", b"0")
    assert doors.told == [("hot", True)]
    assert doors.throttle.release(0.25) == []
    assert [payload for camera, payload in doors.passed if camera == "hot"][5:] == [b"5", b"6"]
    doors.throttle.release(1.0)
    assert not doors.throttle.holds
    assert doors.told == [("hot", True), ("hot", False)]
    assert [payload for camera, payload in doors.passed if camera == "hot"] == [b"%d" % n for n in range(10)]


def test_a_full_worker_holds_its_own_camera_back_alone() -> None:
    doors = Doors(rate=1e6, engine_room=2)
    assert [doors.offer("slow", number, 0.0) for number in range(8)] == [None] * 7 + [FULL]
    assert doors.offer("calm", 0, 0.0) is None
    doors.throttle.release(1.0)
    assert sum(camera == "slow" for camera, _ in doors.passed) == 2
    doors.engine_room = 4
    doors.throttle.release(2.0)
    assert [payload for camera, payload in doors.passed if camera == "slow"] == [b"0", b"1", b"2", b"3"]
    assert doors.told == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20))
def test_percentiles_are_those_of_the_latest_values(values: list[float], size: int) -> None:
    latencies = Latencies(size)
    latencies.extend(values)
    kept = np.array(values[-size:])
    wanted = {f"p{p}": round(float(np.percentile(kept, p, method="inverted_cdf")), 1) for p in (50, 95, 99)}
    assert latencies.percentiles() == wanted
    latencies.clear()
    assert latencies.percentiles() == {"p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize("length", [1, 3, 10])
def test_a_history_keeps_the_latest_points_in_order(length: int) -> None:
    history = History(("t", "video"), length)
    points = [{"t": float(number), "video": None if number % 2 else number / 2} for number in range(7)]
    for point in points:
        history.add(point)
    assert history.points() == points[-length:]


def test_what_was_noted_before_a_worker_process_is_added_to_its_view_once() -> None:
    there, here = CameraState("gate"), CameraState("gate")
    there.dropped("video_corrupt", 2)
    there.dropped("throttled")
    here.dropped("throttled", 3)
    here.degrade("throttle", "throttled: too fast")
    view = there.view() | {"status": "online"}
    for _ in range(2):
        noted = here.annotated(view)
        assert noted["server"]["dropped"] == {"video_corrupt": 2, "throttled": 4}
        assert noted["degraded"] == ["server: throttled: too fast"]
        assert noted["status"] == "degraded"
    assert view["degraded"] == []
