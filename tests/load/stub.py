"""The stub task model: each frame is done with as it comes, undecoded. A decoder takes 0.7 MB for each camera."""

from __future__ import annotations

from collections.abc import Iterator

from scene_edge.server.join import Joined
from scene_edge.server.pictures import Analytics, Outcome, PicturePipeline
from scene_edge.server.state import CameraState
from scene_edge.server.store import FrameResult


class StubPictures(PicturePipeline):
    def __init__(self, state: CameraState) -> None:
        super().__init__(state, Analytics(None, None, (), detect_fps=1.0), None)

    def process(self, joined: Joined) -> Iterator[Outcome]:
        if (unit := joined.unit) is not None:
            result = FrameResult(joined.frame_seq, unit.utc_ns, joined.status.value, "none", len(unit.data), 0)
            yield Outcome(result, unit, False)
