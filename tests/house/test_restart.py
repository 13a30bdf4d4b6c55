"""A camera dies with frames in its spool; the next one sends them beside its own, and the server commits both once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from scene_edge.edge.camera import Camera
from scene_edge.edge.settings import load_config
from scene_edge.edge.transport import MemoryTransport, Message
from scene_edge.server.config import ServerConfig
from scene_edge.server.pictures import Analytics, PicturePipeline
from scene_edge.server.state import CameraState
from scene_edge.server.store import Store
from scene_edge.server.worker import CameraWorker, Inbound
from tests.waiting import wait_until

SETTINGS = [
    "camera=gate-1",
    "scene.enabled=false",
    "semantics.enabled=false",
    "source.url=testsrc:",
    "source.width=96",
    "source.height=64",
    "source.pace=realtime",
    "source.fps=30",
    "video.gop=5",
    "video.threads=1",
    "mqtt.video_batch_ms=100",
]

DOOMED = """
import sys, threading
from scene_edge.edge.camera import Camera
from scene_edge.edge.settings import load_config
from scene_edge.edge.transport import MemoryTransport
transport = MemoryTransport()
transport.down = True
camera = Camera(load_config("cpu", overrides=sys.argv[1:], environment={}), transport=transport)
camera.open()
threading.Thread(target=camera.run, daemon=True).start()
while camera.ledger.snapshot().spooled < 60:
    threading.Event().wait(0.01)
print(camera.ledger.snapshot().spooled, file=sys.stderr, flush=True)
threading.Event().wait()
"""


class Server:
    """A worker with a database in memory, fed by the camera's transport."""

    def __init__(self, transport: MemoryTransport) -> None:
        config = ServerConfig.model_validate({"limits": {"commit_frames": 1}})
        self.store, state = Store("sqlite://"), CameraState("gate-1")
        self.view = state.view
        self._transport = transport
        analytics = Analytics(None, None, [], 5.0)
        self._worker = CameraWorker(
            "gate-1",
            config,
            self.store,
            state,
            lambda shown: PicturePipeline(shown, analytics, None),
            lambda topic, payload, _qos: transport.deliver(topic, payload),
            threading.Event(),
        )
        transport.on_publish = self._take

    def _take(self, message: Message) -> None:
        self._worker.handle(Inbound(message.topic.rpartition("/")[2], message.payload, time.monotonic()))

    def committed(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        with self.store._engine.begin() as connection:
            for session, seq in connection.exec_driver_sql("select session, seq from frames order by session, seq"):
                found.setdefault(session, []).append(seq)
        return found


def test_what_a_killed_camera_had_spooled_is_committed_once(tmp_path: Path) -> None:
    settings = [*SETTINGS, f"spool.path={tmp_path}"]
    doomed = subprocess.Popen(
        [sys.executable, "-c", DOOMED, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert doomed.stderr is not None
    assert int(doomed.stderr.readline()) >= 60
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    doomed.stderr.close()

    transport = MemoryTransport()
    server = Server(transport)
    camera = Camera(load_config("cpu", overrides=settings, environment={}), transport=transport)
    camera.open()
    found = camera.ledger.snapshot().backfill
    assert found.recovered == found.waiting >= 30, "all but the last commit, and what was not encoded yet"
    running = threading.Thread(target=camera.run)
    running.start()
    try:
        wait_until(lambda: camera.ledger.snapshot().backfill.waiting == 0)
        wait_until(lambda: camera.ledger.snapshot().committed > 10)
    finally:
        camera.stop()
        running.join(30)
        camera.close()
    ledger = camera.ledger.snapshot()
    assert ledger.balanced
    assert (ledger.spooled, ledger.backfill.committed, ledger.backfill.dropped) == (0, found.recovered, {})
    committed = server.committed()
    now = f"{camera.session_id:016x}"
    (before,) = committed.keys() - {now}
    assert committed[before] == list(range(found.recovered))
    assert committed[now] == list(range(ledger.committed))
    assert server.view()["session"] == now
    assert server.view()["server"]["dropped"] == {}
    assert camera.degraded == ()

    after = Camera(load_config("cpu", overrides=settings, environment={}), transport=MemoryTransport())
    after.open()
    after.close()
    assert after.ledger.snapshot().backfill.recovered == 0, "the file was let go of"
