"""Mosquitto and a server of its own process for a load, and what is in the server's database and memory afterwards."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from scene_edge.broker import LocalBroker, free_port
from tests.data import REPOSITORY

SERVER = """
broker: {{url: "mqtt://127.0.0.1:{port}"}}
web: {{port: {web}}}
database: "sqlite:///{folder}/results.db"
fusion: {{enabled: false}}
analytics: {{detector: "off", actions: []}}
engine: {{processes: {processes}}}
limits: {{max_cameras: 2000, queue_messages: {queue_messages}}}
log_level: error
"""


class Stage:
    """Use it as a context manager. The task model is a stub: messages are parsed, joined, committed, not decoded."""

    def __init__(self, folder: Path, *, queue_messages: int = 512, processes: int = 1) -> None:
        self.folder, self.web, self._queue_messages = folder, free_port(), queue_messages
        self._processes = processes
        self.broker = LocalBroker(folder, kind="mosquitto")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stage:
        self._start_broker()
        settings = self.folder / "server.yaml"
        settings.write_text(
            SERVER.format(
                port=self.broker.port,
                web=self.web,
                folder=self.folder,
                queue_messages=self._queue_messages,
                processes=self._processes,
            )
        )
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.load.server", str(settings)],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
        self.broker.stop()

    def restart_broker(self) -> None:
        """As a power cut would, and a moment later it is there again."""
        self.broker.kill()
        self._start_broker()

    def _start_broker(self) -> None:
        """A thousand connections are more than many shells allow for, and so is what a child of theirs inherits."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
        self.broker.start()

    def ready(self) -> bool:
        """Whether the server hears the broker, and its database answers."""
        try:
            return bool(json.loads(self.get("/healthz"))["status"] == "ok")
        except OSError:
            return False

    def camera(self, name: str) -> dict[str, Any]:
        """What the page knows of a camera."""
        return dict(json.loads(self.get(f"/api/cameras/{name}")))

    def get(self, path: str) -> bytes:
        """What the server's page answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def memory_mb(self) -> float:
        """The most that each of the server's processes has had in memory at once, together, in 10^6 bytes."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self._pids()]
        lines = (line for status in statuses for line in status.splitlines())
        return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))

    def cpu_s(self) -> float:
        """Processor time that the server has taken, in all of its processes."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self._pids()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")

    def _pids(self) -> list[int]:
        """The server, and its worker processes."""
        assert self._server is not None
        workers = json.loads(self.get("/healthz"))["workers"]
        return [self._server.pid, *(worker["pid"] for worker in workers)]

    def rows(self) -> list[tuple[str, str, int, float]]:
        """Camera, session, number, and milliseconds from publication to commit, of every frame that is stored."""
        connection = sqlite3.connect(self.folder / "results.db")
        try:
            return connection.execute(
                "select camera, session, seq, (committed_ns - captured_ns) / 1e6 from frames"
            ).fetchall()
        finally:
            connection.close()
