"""A camera, Mosquitto and a server on this machine, with a bad line between camera and broker, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scene_edge.broker import LocalBroker
from scene_edge.edge.camera import Camera
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.ledger import LedgerSnapshot
from scene_edge.edge.settings import load_config
from tests.data import REPOSITORY
from tests.faults.names import BROKER, Names
from tests.faults.proxy import CLEAR, Proxy

SERVER = """
broker: {{url: "mqtt://127.0.0.1:{port}", keepalive_s: 5}}
web: {{port: 0}}
database: "sqlite:///{folder}/results.db"
fusion: {{enabled: false}}
analytics: {{detector: "off", actions: []}}
ownership: {{lease_s: 1}}
engine: {{processes: {processes}}}
"""
PATIENCE_S = 90.0


@dataclass
class Verdict:
    """What a run came to. Valid only if `lost` and `unexpected` are empty and the books add up."""

    ledger: LedgerSnapshot
    stored: list[int]
    connections: int
    resent: int
    epochs: list[int] = field(default_factory=list)
    """Of the owner that wrote each frame, in the order in which they were written."""

    resumed_s: list[float] = field(default_factory=list)
    """How long the stream stood after each kill."""

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
        if self.epochs != sorted(self.epochs):
            found.append("an owner of before has written behind the one after it")
        if len(set(self.stored)) != len(self.stored):
            found.append("a frame is stored twice")
        return found


class Stage:
    """Start it, let a camera run with `play`, and do harm meanwhile. `processes` are the server's workers."""

    def __init__(self, folder: Path, *, fps: int = 20, clock: Clock | None = None, processes: int = 1) -> None:
        self.folder, self._fps, self._clock = folder, fps, clock or SystemClock()
        self.broker = LocalBroker(folder, kind="mosquitto")
        self.proxy = Proxy(self.broker.port)
        self.names = Names()
        self.camera: Camera | None = None
        self.servers: list[subprocess.Popen[bytes]] = []
        self.resumed_s: list[float] = []
        """From each kill until the camera's frames were committed again."""

        (folder / "server.yaml").write_text(SERVER.format(port=self.broker.port, folder=folder, processes=processes))

    def __enter__(self) -> Stage:
        self.broker.start()
        self.proxy.__enter__()
        self.names.__enter__()
        self.start_server()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_server()
        self.names.__exit__()
        self.proxy.__exit__()
        self.broker.stop()

    def start_server(self) -> None:
        """Returns at once: cameras wait for it as they would elsewhere. A second one is a standby."""
        with (self.folder / "server.log").open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "scene_edge", "serve", "--config", str(self.folder / "server.yaml")],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        self.servers.append(server)

    def pages(self) -> int:
        """How many servers have come up so far."""
        return (self.folder / "server.log").read_text(errors="replace").count("page: ")

    def kill_server(self) -> None:
        """All of them."""
        for server in self.servers:
            server.kill()
            server.wait()
        self.servers.clear()

    def kill_worker(self) -> None:
        """The process that has the camera: the server stays, and starts another."""
        (worker,) = (worker for worker in self.workers() if worker["cameras"])
        os.kill(worker["pid"], signal.SIGKILL)
        restarts = worker["restarts"]
        self.until(lambda: max(each["restarts"] for each in self.workers()) > restarts, "another worker")

    def workers(self) -> list[dict[str, Any]]:
        """What the server says of its worker processes."""
        page = (self.folder / "server.log").read_text(errors="replace").rpartition("page: ")[2].split()[0]
        try:
            answer = urllib.request.urlopen(f"{page}healthz", timeout=30)
        except urllib.error.HTTPError as failing:  # and says so
            answer = failing
        with answer:
            return list(json.load(answer)["workers"])

    def owner(self) -> subprocess.Popen[bytes] | None:
        """The server whose name stands in the leases; None while there is none."""
        with self._results() as results:
            names = {name for (name,) in results.execute("select distinct owner from leases")}
        return next((server for server in self.servers if any(f"/{server.pid}/" in name for name in names)), None)

    def is_locked(self) -> bool:
        """Whether somebody is in the middle of writing to the results."""
        with self._results() as results:
            try:
                results.execute("begin immediate")
            except sqlite3.OperationalError:
                return True
            results.rollback()
            return False

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises TimeoutError if it does not come."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S * 50)):
            if condition():
                return
            pause.wait(0.02)
        raise TimeoutError(f"{what} did not come: {self._last_words()}")

    @property
    def committed(self) -> int:
        return self.camera.ledger.snapshot().committed if self.camera else 0

    @property
    def sessions(self) -> dict[int, int]:
        """Sessions that the camera has begun, and how many frames were coded before each."""
        return self.camera.sessions if self.camera else {}

    def until_committed(self, count: int) -> None:
        """Wait until the server has acknowledged so many frames; raises TimeoutError if it does not."""
        self.until(lambda: self.committed >= count, f"commit {count}")

    def until_more(self, frames: int = 5) -> None:
        """Wait until the stream goes on."""
        self.until_committed(self.committed + frames)

    @contextmanager
    def resuming(self) -> Iterator[None]:
        """Around a kill: notes how long the stream takes to go on."""
        begun_s = time.monotonic()
        yield
        self.until_more()
        self.resumed_s.append(time.monotonic() - begun_s)

    def play(self, harm: Callable[[Stage], None]) -> Verdict:
        """A live camera runs while `harm` does its worst; then the line is clear, and the camera may finish."""
        settings = [
            f"mqtt.broker=mqtt://{BROKER}:{self.proxy.port}", "camera=gate-1", "scene.enabled=false",
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
            self.names.up = True
            camera.stop()
            running.join()
        if failures:
            raise failures[0]
        stored, epochs = self._stored(camera)
        return Verdict(camera.ledger.snapshot(), stored, connections[0], resent[0], epochs, self.resumed_s)

    def _stored(self, camera: Camera) -> tuple[list[int], list[int]]:
        """What the server has, numbered as the camera's encoder did over all sessions, and under which epochs."""
        first = {f"{session:016x}": frames for session, frames in camera.sessions.items()}
        with self._results() as results:
            rows = results.execute("select session, seq, epoch from frames order by rowid").fetchall()
        numbers = sorted(first[session] + seq for session, seq, _ in rows)
        return numbers, [epoch for *_, epoch in rows]

    def order(self) -> list[int]:
        """What the server has, in the order in which it was committed: the number of the session, from 0, of each."""
        numbers = {f"{session:016x}": number for number, session in enumerate(self.sessions)}
        with self._results() as results:
            rows = results.execute("select session from frames order by committed_ns, rowid").fetchall()
        return [numbers[session] for (session,) in rows]

    @contextmanager
    def _results(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.folder / "results.db", timeout=0.5)
        try:
            yield connection
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the server said nothing"
