"""`python -m tests.load.server server.yaml`: the server as it is, but for the work on pictures, which is a stub."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import structlog

from scene_edge.server.config import load_config
from scene_edge.server.service import Server
from tests.load.stub import StubPictures


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
