"""Frames that never came although later ones did: asked for, awaited, and never covered by a later frame's ack."""

from __future__ import annotations

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
