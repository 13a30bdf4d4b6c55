"""`python -m tests.load.server server.yaml`: the server as it is, but for the work on pictures, which is a stub."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog

from scene_edge.server.config import load_config
from scene_edge.server.join import Joined
from scene_edge.server.pictures import Analytics, Outcome, PicturePipeline
from scene_edge.server.service import Server
from scene_edge.server.state import CameraState
from scene_edge.server.store import FrameResult


class StubPictures(PicturePipeline):
    """The stub task model: each frame is done with as it comes, undecoded. A decoder takes 0.7 MB for each camera."""

    def __init__(self, state: CameraState) -> None:
        super().__init__(state, Analytics(None, None, (), detect_fps=1.0), None)

    def process(self, joined: Joined) -> Iterator[Outcome]:
        if (unit := joined.unit) is not None:
            result = FrameResult(joined.frame_seq, unit.utc_ns, joined.status.value, "none", len(unit.data), 0)
            yield Outcome(result, unit, False)


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    server = Server(load_config(Path(sys.argv[1])), pictures=StubPictures)
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    server.start()
    done.wait()
    server.stop()


if __name__ == "__main__":
    main()
