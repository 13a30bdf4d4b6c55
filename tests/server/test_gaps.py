"""Frames that never came although later ones did: asked for, awaited, and never covered by a later frame's ack."""

from __future__ import annotations

import json

from scene_edge.server.config import ServerConfig
from tests.server.camera import GOP, FakeCamera
from tests.server.test_worker import Bench


def messages(camera: FakeCamera, *indexes: int) -> list[tuple[str, bytes]]:
    return [("video", payload) for index in indexes for payload in camera.video(index)]


def test_a_server_that_comes_in_the_middle_asks_for_what_was_before() -> None:
    """Its camera still has it: a broker without a subscriber does not."""
    bench, camera = Bench(None), FakeCamera(None, frames=2 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, GOP, GOP + 1)])
    assert bench.acks() == [{"session": camera.session, "epoch": 1, "missing": 0}], "once, not for every message"
    bench.feed(messages(camera, *range(2 * GOP)))
    bench.now_s += 1
    bench.worker.tick(bench.now_s)
    assert bench.worker.idle, "the first frame of all is there: nothing else is awaited"
    acks = bench.acks()[1:]
    assert acks[-1]["seq"] == 2 * GOP - 1
    assert not any("missing" in ack for ack in acks), "a gap that fills is not asked for again"
    assert [row[0] for row in bench.rows(camera)] == list(range(2 * GOP))


def test_what_a_broker_lost_in_between_is_asked_for() -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, *range(GOP))])
    bench.now_s += 1
    bench.worker.tick(bench.now_s)
    bench.feed(messages(camera, *range(2 * GOP, 3 * GOP)))
    (asked,) = [ack for ack in bench.acks() if "missing" in ack]
    assert asked == {"session": camera.session, "seq": GOP - 1, "epoch": 1, "missing": GOP}
    bench.now_s += 4
    bench.worker.tick(bench.now_s)
    assert len([ack for ack in bench.acks() if "missing" in ack]) == 2, "the question itself may be lost"
    assert max(ack["seq"] for ack in bench.acks()) == GOP - 1, "nothing behind the gap is acknowledged"
    bench.feed(messages(camera, *range(GOP, 3 * GOP)))
    bench.settle()
    assert [row[0] for row in bench.rows(camera)] == list(range(3 * GOP))


def test_what_its_camera_gave_up_is_given_up_here_too() -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, *range(GOP), *range(2 * GOP, 3 * GOP))])
    bench.settle()
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1
    assert bench.view()["match"]["missing_video"] == GOP


def ledger(camera: FakeCamera, held: dict[str, int] | None, session: str | None = None) -> tuple[str, bytes]:
    return "ledger", json.dumps({"session": session or camera.session, "held": held}).encode()


def test_what_a_camera_says_it_holds_is_never_given_up() -> None:
    """Its line may be down for longer than any gap is awaited: an ack of later frames would have it forget them."""
    bench, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, *range(GOP))])
    bench.feed([ledger(camera, {camera.session: 0}), *messages(camera, *range(2 * GOP, 3 * GOP))])
    for _ in range(5):
        bench.now_s += 30
        bench.worker.tick(bench.now_s)
    assert max(ack["seq"] for ack in bench.acks() if "seq" in ack) == GOP - 1
    due_s = bench.worker.next_wakeup_s()
    assert due_s is not None
    assert due_s > bench.now_s, "nobody turns in circles meanwhile"
    bench.feed(messages(camera, *range(GOP, 3 * GOP)))
    bench.settle()
    assert [row[0] for row in bench.rows(camera)] == list(range(3 * GOP))
    assert bench.view()["match"].get("missing_video", 0) == 0


def test_what_a_camera_says_it_has_not_is_given_up_at_once() -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, *range(GOP), *range(2 * GOP, 3 * GOP))])
    bench.feed([ledger(camera, {camera.session: 2 * GOP})])
    bench.now_s += 1
    bench.worker.tick(bench.now_s)
    assert bench.worker.idle
    assert bench.view()["match"]["missing_video"] == GOP
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


def test_a_restarted_camera_loses_nothing_of_the_session_before() -> None:
    """A new session used to finish the one before, gap and all, and its ack freed what the camera still had."""
    bench = Bench(None)
    first, second = FakeCamera(None, frames=3 * GOP), FakeCamera(None, frames=GOP, session_id=77)
    bench.feed([("birth", first.birth()), *messages(first, *range(GOP), *range(2 * GOP, 3 * GOP))])
    bench.feed([("birth", second.birth()), *messages(second, *range(GOP))])
    bench.feed([ledger(second, {second.session: 0, first.session: GOP})])
    bench.now_s += 1
    bench.worker.tick(bench.now_s)
    assert max(ack["seq"] for ack in bench.acks() if ack["session"] == first.session and "seq" in ack) == GOP - 1
    bench.feed(messages(first, *range(GOP, 3 * GOP)))
    bench.settle()
    assert [row[0] for row in bench.rows(first)] == list(range(3 * GOP))
    assert [row[0] for row in bench.rows(second)] == list(range(GOP))
    assert bench.view()["session"] == second.session


def test_what_came_of_a_session_that_its_camera_lost_is_kept() -> None:
    bench = Bench(None)
    first, second = FakeCamera(None, frames=3 * GOP), FakeCamera(None, frames=GOP, session_id=77)
    bench.feed([("birth", first.birth()), *messages(first, *range(GOP), *range(2 * GOP, 3 * GOP))])
    bench.feed([("birth", second.birth()), *messages(second, *range(GOP))])
    bench.feed([ledger(first, {first.session: 0})])
    assert not bench.worker.idle, "the session that is over does not speak for the camera"
    bench.feed([ledger(second, {second.session: 0})])
    bench.settle()
    assert [row[0] for row in bench.rows(first)] == [*range(GOP), *range(2 * GOP, 3 * GOP)]


def test_what_would_wait_behind_a_gap_without_end_is_not_taken_and_comes_again() -> None:
    config = ServerConfig.model_validate({"join": {"max_frames": 16}})
    bench, camera = Bench(None, config), FakeCamera(None, frames=12 * GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, 1), ledger(camera, {camera.session: 0})])
    bench.feed(messages(camera, *range(2, 12 * GOP)))
    assert bench.view()["server"]["waiting"] == 17
    assert not bench.rows(camera)
    for _ in range(2):  # as its camera does for as long as something is not acknowledged
        bench.feed(messages(camera, *range(12 * GOP)))
    bench.settle()
    assert [row[0] for row in bench.rows(camera)] == list(range(12 * GOP))


def test_a_camera_that_will_say_what_it_holds_is_waited_for() -> None:
    """Its ledger is lost where its line goes down, or the server was away: its birth is not."""
    bench, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    bench.feed([("birth", camera.birth(tells_held=True)), *messages(camera, *range(GOP), *range(2 * GOP, 3 * GOP))])
    bench.now_s += 300
    bench.worker.tick(bench.now_s)
    assert max(ack["seq"] for ack in bench.acks() if "seq" in ack) == GOP - 1
    bench.feed([ledger(camera, {camera.session: 2 * GOP})])
    bench.settle()
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


def test_a_birth_that_comes_behind_the_frames_is_waited_for() -> None:
    """What a broker kept for a server that was away comes before what it retained."""
    old, camera = Bench(None), FakeCamera(None, frames=3 * GOP)
    old.feed([("birth", camera.birth()), *messages(camera, *range(GOP))])
    old.settle()
    bench = Bench(None, store=old.store)
    bench.feed(messages(camera, *range(2 * GOP, 3 * GOP)))
    bench.now_s += 20
    bench.worker.tick(bench.now_s)
    assert not [ack for ack in bench.acks() if ack.get("seq", 0) >= GOP]
    bench.feed([("birth", camera.birth(tells_held=True))])
    bench.now_s += 300
    bench.worker.tick(bench.now_s)
    assert not bench.worker.idle


def test_nonsense_about_what_is_held_changes_nothing() -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=GOP)
    bench.feed([("birth", camera.birth()), *messages(camera, 0, 2)])
    for held in (None, 7, [], {camera.session: "3"}, {camera.session: -1}, {camera.session: True}):
        bench.feed([("ledger", json.dumps({"session": camera.session, "held": held}).encode())])
        assert bench.worker._live is not None
        assert bench.worker._live.joiner.held_from is None
