"""JPEGs for the page, and the tracker behind its seam."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from scene_edge.codec.media import planes_of
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.tracker import ByteTracker
from scene_edge.server.web.jpeg import encode_jpeg
from tests.server.camera import picture


@pytest.mark.parametrize(("width", "height"), [(96, 64), (90, 50), (18, 2)])
def test_a_jpeg_shows_the_picture(width: int, height: int) -> None:
    planes = picture(0, width, height) if height > 32 else picture(0, width, 32)
    with av.open(io.BytesIO(encode_jpeg(planes, 95))) as container:
        (frame,) = container.decode(video=0)
    shown = planes_of(frame)
    assert (shown.width, shown.height) == (planes.width, planes.height)
    stretched = (planes.y.astype(float) - 16) * 255 / 219
    assert abs(float(stretched.mean()) - float(shown.y.mean())) < 4


def test_better_quality_takes_more_bytes() -> None:
    sizes = [len(encode_jpeg(picture(0), quality)) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


NAMES = ("person", "vehicle")


def test_objects_keep_their_ids_over_a_short_absence() -> None:
    tracker = ByteTracker(5)
    seen = []
    for step in range(10):
        boxes = [] if step == 5 else [[10 + 3 * step, 10, 50 + 3 * step, 90], [200 - 4 * step, 20, 260 - 4 * step, 80]]
        found = Detections.of(boxes, [0.8, 0.5][: len(boxes)], [0, 1][: len(boxes)], NAMES)
        seen.append(tracker.update(found, step))
    assert [len(tracks) for tracks in seen] == [0, 2, 2, 2, 2, 0, 2, 2, 2, 2]
    assert {(track.track_id, track.label) for tracks in seen for track in tracks} == {
        (seen[1][0].track_id, "person"),
        (seen[1][1].track_id, "vehicle"),
    }
    assert np.allclose(seen[9][0].box, (37, 10, 77, 90))


def test_weak_boxes_begin_no_track_and_reset_forgets() -> None:
    tracker = ByteTracker(5)
    for step in range(5):
        assert tracker.update(Detections.of([[10, 10, 50, 90]], [0.1], [0], NAMES), step) == ()
    for step in range(3):
        tracks = tracker.update(Detections.of([[10, 10, 50, 90]], [0.9], [0], NAMES), step)
    assert len(tracks) == 1
    tracker.reset()
    assert tracker.update(Detections.of([[10, 10, 50, 90]], [0.9], [0], NAMES), 0) == ()
    assert tracker.update(Detections.none(NAMES), 1) == ()
