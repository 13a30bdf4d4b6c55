"""The rendered street: the same bytes from the same seed, and ground truth that fits the picture."""

from __future__ import annotations

import numpy as np
import pytest

from scene_edge.codec.errors import ConfigError, SourceError
from scene_edge.codec.planes import Planes
from scene_edge.edge.config import SourceConfig
from scene_edge.edge.sources import open_source
from scene_edge.edge.sources.street import Street, StreetSource
from tests.data import data_file

WIDTH, HEIGHT, FPS = 480, 270, 30.0


@pytest.fixture(scope="module")
def street() -> Street:
    return Street(WIDTH, HEIGHT, FPS, seed=3)


def luma_change(a: Planes, b: Planes) -> np.ndarray:
    return np.abs(a.y.astype(np.int16) - b.y.astype(np.int16))


def test_a_frame_depends_on_seed_and_number_alone(street: Street) -> None:
    late = street.frame(200)
    again = Street(WIDTH, HEIGHT, FPS, seed=3).frame(200)
    assert np.array_equal(late.y, again.y)
    assert np.array_equal(late.u, again.u)
    assert np.array_equal(late.v, again.v)
    assert (luma_change(late, Street(WIDTH, HEIGHT, FPS, seed=4).frame(200)) > 20).mean() > 0.05


def test_pictures_stay_in_the_limited_range(street: Street) -> None:
    planes = street.frame(60)
    assert planes.y.shape == (HEIGHT, WIDTH)
    assert planes.y.min() >= 7
    assert planes.y.max() <= 244
    assert planes.y.std() > 25, "a street has contrast"


@pytest.mark.parametrize("number", [0, 75, 300, 450])
def test_boxes_lie_in_the_picture_and_hold_what_moves(street: Street, number: int) -> None:
    boxes = street.truth(number)
    assert len(boxes) >= 5
    assert len({box.identity for box in boxes}) == len(boxes)
    for box in boxes:
        assert box.kind in ("person", "car")
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= WIDTH
        assert box.top + box.height <= HEIGHT
        assert 0 < box.visible <= 1
    # Between two frames of the same light nothing changes but the boxes of both, their shadows, and the grain.
    step = 3
    still = np.ones((HEIGHT, WIDTH), bool)
    for box in boxes + street.truth(number + step):
        top, left = int(box.top) - 4, int(box.left) - 8
        still[max(top, 0) : int(box.top + box.height) + 8, max(left, 0) : int(box.left + box.width) + 12] = False
    changed = luma_change(street.frame(number), street.frame(number + step)) > 24
    assert not changed[still].any(), "something moves outside every box"
    assert changed[~still].any(), "nothing moves"


def test_an_identity_moves_smoothly(street: Street) -> None:
    before = {box.identity: box for box in street.truth(100) if box.visible > 0.5}
    after = {box.identity: box for box in street.truth(101) if box.visible > 0.5}
    shared = before.keys() & after.keys()
    assert len(shared) >= 4
    for identity in shared:
        a, b = before[identity], after[identity]
        assert abs(a.left + a.width / 2 - b.left - b.width / 2) < 0.03 * WIDTH


def test_passes_through_the_street_are_different_identities(street: Street) -> None:
    seen = {box.identity for number in range(0, 3000, 60) for box in street.truth(number)}
    assert len(seen) > 40


def test_mot_text_has_nine_columns(street: Street) -> None:
    lines = street.mot(2).splitlines()
    assert {line.count(",") for line in lines} == {8}
    frames = [int(line.split(",")[0]) for line in lines]
    assert set(frames) == {1, 2}
    assert {line.split(",")[7] for line in lines} <= {"1", "3"}


@pytest.mark.parametrize(("width", "height"), [(481, 270), (32, 32), (8192, 270)])
def test_impossible_sizes_are_refused(width: int, height: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        Street(width, height)


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate"):
        Street(128, 96, fps=0)


def test_the_source_ends_after_its_frames_with_recorded_times() -> None:
    config = SourceConfig(url="street:5", pace="asap", width=160, height=96, fps=25)
    source = open_source(config, frames=3)
    assert isinstance(source, StreetSource)
    info = source.open()
    assert (info.width, info.height, info.fps, info.live) == (160, 96, 25, False)
    frames = [source.read() for _ in range(4)]
    source.close()
    assert [frame.capture_ns if frame else None for frame in frames] == [0, 40_000_000, 80_000_000, None]


def test_a_steady_pace_keeps_recorded_times_and_says_when_a_frame_was_taken() -> None:
    source = StreetSource(160, 96, 200.0, pace="steady", frames=2)
    assert not source.open().live
    first, second = source.read(), source.read()
    assert first is not None
    assert second is not None
    assert (first.capture_ns, second.capture_ns) == (0, 5_000_000)
    assert first.utc_offset_ns > 1_600_000_000 * 10**9
    taken = [frame.capture_ns + frame.utc_offset_ns for frame in (first, second)]
    assert taken[0] < taken[1]


def test_bad_use_of_the_source_is_refused() -> None:
    with pytest.raises(SourceError, match="seed"):
        open_source(SourceConfig(url="street:seven"))
    with pytest.raises(SourceError, match="open"):
        StreetSource(160, 96).read()


def test_a_detector_trained_on_photographs_knows_people_and_cars() -> None:
    """The drawing is good enough for analytics to have something to do: most of what is near is found."""
    from scene_edge.server.analytics.detector import open_detector

    detector = open_detector(str(data_file("models/yolox_nano.onnx")))
    large = Street()
    wanted = found = 0
    for number in (60, 200, 380):
        detections = detector.detect(large.frame(number)).above(0.3)
        labels = [detections.names[index] for index in detections.classes]
        for box in large.truth(number):
            if box.visible < 0.5 or box.height < 60:
                continue
            wanted += 1
            x, y = box.left + box.width / 2, box.top + box.height / 2
            kinds = ("person",) if box.kind == "person" else ("car", "truck", "bus")
            found += any(
                label in kinds and left < x < right and top < y < bottom
                for label, (left, top, right, bottom) in zip(labels, detections.boxes, strict=True)
            )
    assert found >= 0.7 * wanted, f"{found} of {wanted}"
