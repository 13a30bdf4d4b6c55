"""A broker on this machine for as long as it is needed: mosquitto where it is installed, else amqtt inside Python.

For the demo and for tests. Neither asks for a password, so both listen on the loopback interface alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from scene_edge.codec.errors import TransportError

START_S = 15.0


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_path() -> str | None:
    """Debian installs mosquitto where an ordinary user's PATH does not look."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def available_brokers() -> tuple[str, ...]:
    """Which of mosquitto and amqtt can be started here, the better first."""
    found = ["mosquitto"] if mosquitto_path() else []
    return (*found, "amqtt") if importlib.util.find_spec("amqtt") else tuple(found)


class LocalBroker:
    """A broker in a child process, with its files in `folder`. Use it as a context manager, or start() and stop()."""

    def __init__(self, folder: Path, *, kind: str | None = None, port: int | None = None) -> None:
        brokers = available_brokers()
        if kind is None and brokers:
            kind = brokers[0]
        if kind not in brokers:
            raise TransportError(
                "no broker can be started here",
                got=kind,
                allowed=", ".join(brokers) or None,
                hint="Install mosquitto (apt install mosquitto) or the demo extra (pip install 'scene-edge[demo]').",
            )
        self.kind, self.port = kind, port or free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once the broker takes connections. Raises TransportError with its last words."""
        log = self._folder / f"{self.kind}.log"
        with log.open("ab") as written:
            # Its own session: a Ctrl-C in the terminal reaches us alone, and we end the children in order.
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=written, stderr=written, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        self.stop()
        lines = log.read_text(errors="replace").strip().splitlines()
        raise TransportError(f"{self.kind} did not start on port {self.port}", got=lines[-1] if lines else None)

    def stop(self) -> None:
        end_process(self._process)
        self._process = None

    def kill(self) -> None:
        """As a power cut would: nothing is written, no client is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> LocalBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        mosquitto = mosquitto_path()
        if self.kind != "mosquitto" or mosquitto is None:
            return [sys.executable, "-m", "scene_edge.broker", str(self.port)]
        settings = self._folder / "mosquitto.conf"
        settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "max_queued_messages 100000\nmax_inflight_messages 200\n"
        )
        return [mosquitto, "-c", str(settings)]


def end_process(process: subprocess.Popen[bytes] | None, *, patience_s: float = 10.0) -> int | None:
    """SIGTERM, then SIGKILL after `patience_s`; the exit status, None where there is no process."""
    if process is None:
        return None
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


async def serve_amqtt(port: int) -> None:
    """Run the embedded broker until SIGTERM or SIGINT."""
    from amqtt.broker import Broker

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 200}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve_amqtt(int(sys.argv[1])))
