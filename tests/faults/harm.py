"""The faults of the list, each as something done to a stage: F1, F2, F7, F8, F9. `times` is how often."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scene_edge.edge.clock import SystemClock
from tests.faults.proxy import CLEAR, Line
from tests.faults.stage import Stage

HOUR_NS = 3600 * 10**9
JUMPS_NS = (HOUR_NS, -HOUR_NS, 24 * HOUR_NS, -24 * HOUR_NS, None)
"""None: to 1970."""


class JumpingClock(SystemClock):
    """The wall clock jumps by `jump_ns`, or stands at the epoch; what counts, the monotonic one, goes on."""

    def __init__(self) -> None:
        self.jump_ns: int | None = 0

    def utc_offset_ns(self) -> int:
        return 1 - self.now_ns() if self.jump_ns is None else super().utc_offset_ns() + self.jump_ns


@dataclass(frozen=True, slots=True)
class Fault:
    """`full` is how often `make faults` does it, `few` how often a test run does."""

    key: str
    says: str
    do: Callable[[Stage, int], None]
    full: int
    few: int = 1
    processes: int = 1


def linger(seconds: float) -> None:
    threading.Event().wait(seconds)


def kill_broker(stage: Stage, times: int) -> None:
    for _ in range(times):
        with stage.resuming():
            stage.broker.kill()
            linger(0.3)
            stage.broker.start()


def kill_server(stage: Stage, times: int) -> None:
    for _ in range(times):
        with stage.resuming():
            stage.kill_server()
            stage.start_server()


def kill_worker(stage: Stage, times: int) -> None:
    for _ in range(times):
        with stage.resuming():
            stage.kill_worker()


def suspend(stage: Stage, process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, and wait until every thread stands: one that is in a call stops behind it."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    stage.until(
        lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()),
        "the halt",
    )


def suspend_owner(stage: Stage, times: int) -> None:
    """SIGSTOP for two leases, until the standby has taken over, and SIGCONT."""
    if len(stage.servers) < 2:
        pages = stage.pages()
        stage.start_server()
        stage.until(lambda: stage.pages() > pages, "the standby")
    for _ in range(times):
        stage.until(lambda: stage.owner() is not None, "an owner")
        owner = stage.owner()
        assert owner is not None
        suspend(stage, owner)
        while stage.is_locked():  # stopped in the middle of a commit it would hold SQLite's lock for ever
            owner.send_signal(signal.SIGCONT)
            linger(0.05)
            suspend(stage, owner)
        stage.until(lambda before=owner: stage.owner() not in (None, before), "a takeover")  # type: ignore[misc]
        stage.until_more()
        owner.send_signal(signal.SIGCONT)
        stage.until_more(20)


def with_line(line: Line, seconds: float) -> Callable[[Stage, int], None]:
    """The line is like that for so long, then clear."""

    def do(stage: Stage, times: int) -> None:
        for _ in range(times):
            stage.proxy.set(line)
            linger(seconds)
            stage.proxy.set(CLEAR)
            stage.until_more()

    return do


def outage(stage: Stage, times: int) -> None:
    """Long enough for the camera to begin another session: what is new goes before what has waited."""
    for _ in range(times):
        begun = len(stage.sessions)
        stage.proxy.set(Line(up=False))
        linger(8.0)
        stage.proxy.set(Line(bytes_per_s=40_000))
        stage.until(lambda begun=begun: len(stage.sessions) > begun, "begin another session")  # type: ignore[misc]
        stage.until_more(40)
        stage.proxy.set(CLEAR)
        stage.until_more()


def reset(stage: Stage, times: int) -> None:
    for _ in range(times):
        stage.proxy.reset()
        stage.until_more()


def lose_names(stage: Stage, times: int) -> None:
    """The connection breaks while no name can be resolved."""
    for _ in range(times):
        refused = stage.names.refused
        stage.names.up = False
        stage.proxy.reset()
        stage.until(lambda before=refused: stage.names.refused >= before + 3, "look for the broker")  # type: ignore[misc]
        stage.names.up = True
        stage.until_more()


def slow_line(stage: Stage, times: int) -> None:
    """600 +- 50 ms and 2 % loss: the stream goes on through it."""
    for _ in range(times):
        stage.proxy.set(Line(delay_ms=300, jitter_ms=25, loss=0.02))
        stage.until_more(20)
        stage.proxy.set(CLEAR)


def jump(clock: JumpingClock) -> Callable[[Stage, int], None]:
    def do(stage: Stage, times: int) -> None:
        for _ in range(times):
            for jump_ns in JUMPS_NS:
                clock.jump_ns = jump_ns
                stage.until_more()
                clock.jump_ns = 0
                stage.until_more()

    return do


def faults(clock: JumpingClock) -> list[Fault]:
    return [
        Fault("F1", "kill -9 of the broker", kill_broker, 20),
        Fault("F2 server", "kill -9 of the server, workers and all", kill_server, 20, processes=2),
        Fault("F2 worker", "kill -9 of the worker process that has the camera", kill_worker, 20, processes=2),
        Fault("F9", "SIGSTOP of the server that owns the shards, beside a standby, and SIGCONT", suspend_owner, 10),
        Fault("F7 off/on", "the line is down for 2 s", with_line(Line(up=False), 2.0), 10),
        Fault("F7 outage", "the line is down for 8 s, and thin when it is back", outage, 3),
        Fault("F7 slow", "600 +- 50 ms there and back, 2 % loss", slow_line, 5),
        Fault("F7 half-open", "bytes are taken and never handed on, for 5 s", with_line(Line(silent=True), 5.0), 5),
        Fault("F7 RST", "connections are reset", reset, 20, 3),
        Fault("F7 DNS", "the connection breaks while no name resolves", lose_names, 10),
        Fault("F7 1 byte/s", "one byte a second, for 5 s", with_line(Line(bytes_per_s=1), 5.0), 3),
        Fault("F8", "the camera's clock jumps by an hour, a day, to 1970, and back", jump(clock), 4),
    ]
