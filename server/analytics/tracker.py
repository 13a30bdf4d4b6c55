"""ByteTrack (from `trackers`) behind the Tracker seam: boxes on consecutive pictures become objects with ids."""

from __future__ import annotations

import numpy as np

from scene_edge.codec.errors import EngineError
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.seams import Track

REFERENCE_FPS = 30.0
"""`trackers` gives its buffer in frames at this rate and scales it to the real one."""


class ByteTracker:
    """Tracks of one camera at a fixed rate of pictures.

    Boxes of at least `strong` are matched first, those of at least `weak` only prolong tracks that exist; a new track
    needs `activate`. An object unseen for `lost_after_s` gets a new id when it comes back.
    """

    def __init__(
        self,
        fps: float = 5.0,
        *,
        activate: float = 0.35,
        strong: float = 0.3,
        weak: float = 0.1,
        minimum_iou: float = 0.1,
        lost_after_s: float = 2.0,
        confirm_after: int = 2,
    ) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise EngineError("tracking needs the package `trackers`", hint="Install scene-edge[server].") from error
        self._weak = weak
        self._tracker = ByteTrackTracker(
            lost_track_buffer=max(1, round(lost_after_s * REFERENCE_FPS)),
            frame_rate=fps,
            track_activation_threshold=activate,
            minimum_consecutive_frames=confirm_after,
            minimum_iou_threshold=minimum_iou,
            high_conf_det_threshold=strong,
        )

    def update(self, detections: Detections, frame_seq: int) -> tuple[Track, ...]:
        """The confirmed tracks that are seen on this picture."""
        import supervision

        detections = detections.above(self._weak)
        found = self._tracker.update(
            supervision.Detections(
                xyxy=detections.boxes.astype(np.float32),
                confidence=detections.scores,
                class_id=detections.classes.astype(int),
            )
        )
        tracks = []
        columns = (found.xyxy, found.confidence, found.class_id, found.tracker_id)
        boxes, scores, classes, ids = ([] if column is None else column.tolist() for column in columns)
        for (x0, y0, x1, y1), score, class_id, track_id in zip(boxes, scores, classes, ids, strict=True):
            if track_id >= 0:  # -1: seen, but not confirmed yet
                tracks.append(Track(track_id, (x0, y0, x1, y1), score, detections.names[class_id]))
        return tuple(sorted(tracks, key=lambda track: track.track_id))

    def reset(self) -> None:
        self._tracker.reset()
