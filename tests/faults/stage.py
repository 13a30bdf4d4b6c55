"""A camera, Mosquitto and a server on this machine, with a bad line between camera and broker, and what came of it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from scene_edge.broker import LocalBroker
from scene_edge.edge.camera import Camera
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.ledger import LedgerSnapshot
from scene_edge.edge.settings import load_config
from tests.data import REPOSITORY
from tests.faults.proxy import CLEAR, Proxy

SERVER = """
broker: {{url: "mqtt://127.0.0.1:{port}", keepalive_s: 5}}
web: {{port: 0}}
database: "sqlite:///{folder}/results.db"
fusion: {{enabled: false}}
analytics: {{detector: "off", actions: []}}
"""
PATIENCE_S = 90.0


@dataclass
class Verdict:
    """What a run came to. Valid only if `lost` and `unexpected` are empty and the books add up."""

    ledger: LedgerSnapshot
    stored: list[int]
    connections: int
    resent: int
    lost: list[int] = field(init=False)
    unexpected: list[int] = field(init=False)

    def __post_init__(self) -> None:
        told = set(range(self.ledger.committed))
        self.lost = sorted(told - set(self.stored))
        self.unexpected = sorted(set(self.stored) - told)

    @property
    def faults(self) -> list[str]:
        """Why it is not valid; empty where it is. Only what a busy camera does not take from its source may drop."""
        ledger, found = self.ledger, []
        if not ledger.balanced or ledger.captured != ledger.committed + ledger.spooled + sum(ledger.dropped.values()):
            found.append(f"the books do not add up: {ledger}")
        if ledger.spooled:
            found.append(f"{ledger.spooled} frames were never acknowledged")
        if set(ledger.dropped) - {"queue_full"}:
            found.append(f"dropped: {dict(ledger.dropped)}")
        if self.lost:
            found.append(f"acknowledged and not stored: {self.lost[:20]}")
        if self.unexpected:
            found.append(f"stored and never acknowledged: {self.unexpected[:20]}")
        if len(set(self.stored)) != len(self.stored):
            found.append("a frame is stored twice")
        return found


class Stage:
    """Start it, let a camera run with `play`, and do harm meanwhile."""

    def __init__(self, folder: Path, *, fps: int = 20, clock: Clock | None = None) -> None:
        self.folder, self._fps, self._clock = folder, fps, clock or SystemClock()
        self.broker = LocalBroker(folder, kind="mosquitto")
        self.proxy = Proxy(self.broker.port)
        self.camera: Camera | None = None
        self._server: subprocess.Popen[bytes] | None = None
        (folder / "server.yaml").write_text(SERVER.format(port=self.broker.port, folder=folder))

    def __enter__(self) -> Stage:
        self.broker.start()
        self.proxy.__enter__()
        self.start_server()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_server()
        self.proxy.__exit__()
        self.broker.stop()

    def start_server(self) -> None:
        """Returns at once: cameras wait for it as they would elsewhere."""
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "scene_edge", "serve", "--config", str(self.folder / "server.yaml")],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )

    def kill_server(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    @property
    def committed(self) -> int:
        return self.camera.ledger.snapshot().committed if self.camera else 0

    @property
    def sessions(self) -> dict[int, int]:
        """Sessions that the camera has begun, and how many frames were coded before each."""
        return self.camera.sessions if self.camera else {}

    def until_committed(self, count: int) -> None:
        """Wait until the server has acknowledged so many frames; raises TimeoutError if it does not."""
        self.until(lambda: self.committed >= count)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something; raises TimeoutError if it does not come."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S * 50)):
            if done():
                return
            pause.wait(0.02)
        raise TimeoutError(f"{self.committed} frames were committed so far: {self._last_words()}")

    def until_more(self, frames: int = 5) -> None:
        """Wait until the stream goes on."""
        self.until_committed(self.committed + frames)

    def play(self, harm: Callable[[Stage], None]) -> Verdict:
        """A live camera runs while `harm` does its worst; then the line is clear, and the camera may finish."""
        settings = [
            f"mqtt.broker=mqtt://127.0.0.1:{self.proxy.port}", "camera=gate-1", "scene.enabled=false",
            "semantics.enabled=false", "source.url=testsrc:", "source.width=96", "source.height=64",
            "source.pace=realtime", f"source.fps={self._fps}", "video.gop=5", "video.threads=1", "mqtt.keepalive_s=2",
            "mqtt.backoff_base_ms=50", "mqtt.backoff_cap_ms=400", "mqtt.resend_after_s=1.5", "mqtt.drain_s=60",
            "mqtt.video_batch_ms=100", f"spool.path={self.folder}/spool",
        ]  # fmt: skip
        config = load_config("cpu", overrides=settings, environment={})
        camera = self.camera = Camera(config, clock=self._clock)
        connections, resent, failures = [0], [0], list[BaseException]()

        def run() -> None:
            try:
                camera.open()
                report = camera.run()
                connections[0], resent[0] = report.connections, report.resent
            except BaseException as error:
                failures.append(error)
            finally:
                camera.close()

        running = threading.Thread(target=run, name="camera")
        running.start()
        try:
            self.until_committed(5)
            harm(self)
        finally:
            self.proxy.set(CLEAR)
            camera.stop()
            running.join()
        if failures:
            raise failures[0]
        return Verdict(camera.ledger.snapshot(), self._stored(camera), connections[0], resent[0])

    def _stored(self, camera: Camera) -> list[int]:
        """What the server has, numbered as the camera's encoder did over all of its sessions."""
        connection = sqlite3.connect(self.folder / "results.db")
        try:
            return [
                first + seq
                for session, first in camera.sessions.items()
                for (seq,) in connection.execute("select seq from frames where session = ?", (f"{session:016x}",))
            ]
        finally:
            connection.close()

    def order(self) -> list[int]:
        """What the server has, in the order in which it was committed: the number of the session, from 0, of each."""
        numbers = {f"{session:016x}": number for number, session in enumerate(self.sessions)}
        with closing(sqlite3.connect(self.folder / "results.db")) as connection:
            rows = connection.execute("select session from frames order by committed_ns, rowid").fetchall()
        return [numbers[session] for (session,) in rows]

    def _last_words(self) -> str:
        lines = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the server said nothing"
