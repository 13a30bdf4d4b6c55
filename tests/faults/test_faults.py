"""Nothing is lost and the ledger adds up, whatever happens to broker, server, line and clock. More: `make faults`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scene_edge.broker import mosquitto_path
from scene_edge.edge.ledger import Ledger
from tests.faults.harm import (
    JumpingClock,
    faults,
    kill_broker,
    kill_server,
    kill_worker,
    lose_names,
    outage,
    reset,
    suspend_owner,
    with_line,
)
from tests.faults.proxy import CLEAR, Line, Proxy
from tests.faults.stage import Stage, Verdict

for needed in ("fastapi", "uvicorn", "sqlalchemy"):
    pytest.importorskip(needed, reason=f"{needed} is missing: the server needs its extra")


@pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed")
def test_nothing_is_lost(tmp_path: Path) -> None:
    """One camera through names that do not resolve, a killed broker and server, a line that comes and goes, resets, and
    a jumping clock."""
    clock = JumpingClock()

    def harm(stage: Stage) -> None:
        reset(stage, 1)
        lose_names(stage, 1)
        kill_broker(stage, 1)
        with_line(Line(up=False), 0.5)(stage, 1)
        clock.jump_ns = None
        stage.until_more()
        clock.jump_ns = 0
        kill_server(stage, 1)
        with_line(Line(bytes_per_s=1), 0.5)(stage, 1)

    with Stage(tmp_path, clock=clock) as stage:
        verdict = stage.play(harm)
    assert verdict.faults == []
    assert verdict.ledger.captured > 30
    assert verdict.ledger.captured == verdict.ledger.committed + sum(verdict.ledger.dropped.values())
    assert verdict.connections >= 3


@pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed")
def test_a_killed_worker_process_loses_nothing(tmp_path: Path) -> None:
    """While frames come; and what it writes after that is under a newer epoch."""
    with Stage(tmp_path, processes=2) as stage:
        verdict = stage.play(lambda stage: kill_worker(stage, 2))
        log = (tmp_path / "server.log").read_text()
    assert verdict.faults == []
    assert verdict.ledger.captured == verdict.ledger.committed + sum(verdict.ledger.dropped.values())
    assert len(set(verdict.epochs)) == 3
    assert log.count("worker process died") == 2
    assert log.count("page: ") == 1, "the server itself ran on"


@pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed")
def test_after_an_outage_what_is_new_goes_before_what_has_waited(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        verdict = stage.play(lambda stage: outage(stage, 1))
        order = stage.order()
    assert verdict.faults == []
    assert len(stage.sessions) == 2
    first_new, last_old = order.index(1), len(order) - 1 - order[::-1].index(0)
    assert first_new < last_old, "the backlog was committed before anything new"


@pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed")
def test_a_suspended_owner_is_taken_over_from_and_writes_nothing_more(tmp_path: Path) -> None:
    """Two servers on one database; then the one that took over is killed, and the first one takes over again."""

    def harm(stage: Stage) -> None:
        suspend_owner(stage, 1)
        owner = stage.owner()
        assert owner is not None
        owner.kill()
        stage.until_more()

    with Stage(tmp_path) as stage:
        verdict = stage.play(harm)
        log = (tmp_path / "server.log").read_text()
    assert verdict.faults == []
    assert len(set(verdict.epochs)) >= 3
    assert "another server has taken over" in log


def test_a_verdict_sees_what_is_lost() -> None:
    ledger = replace(Ledger().snapshot(), captured=5, committed=5)
    assert Verdict(ledger, [0, 1, 2, 3, 4], 1, 0).faults == []
    assert Verdict(ledger, [0, 1, 3, 4], 1, 0).lost == [2]
    assert Verdict(ledger, [0, 1, 2, 3, 4, 7], 1, 0).unexpected == [7]
    assert Verdict(ledger, [0, 1, 1, 2, 3, 4], 1, 0).faults == ["a frame is stored twice"]
    assert Verdict(replace(ledger, captured=6), [0, 1, 2, 3, 4], 1, 0).faults
    assert Verdict(ledger, [0, 1, 2, 3, 4], 1, 0, [1, 1, 2, 1, 2]).faults


def test_the_list_is_the_one_that_is_promised() -> None:
    named = {fault.key.split()[0] for fault in faults(JumpingClock())}
    assert named == {"F1", "F2", "F7", "F8", "F9"}
    assert all(fault.full >= fault.few for fault in faults(JumpingClock()))


@pytest.fixture
def echo() -> Iterator[int]:
    """A port that says back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    while data := connection.recv(4096):
                        connection.sendall(data)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def said_back(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(data)
        heard = b""
        while len(heard) < len(data) and (more := connection.recv(4096)):
            heard += more
        return heard


@pytest.mark.parametrize("line", [CLEAR, Line(delay_ms=20, jitter_ms=10, loss=0.1), Line(bytes_per_s=100_000)])
def test_the_proxy_hands_everything_on_in_order(echo: int, line: Line) -> None:
    data = bytes(range(256)) * 200
    with Proxy(echo) as proxy:
        proxy.set(line)
        assert said_back(proxy.port, data) == data
        assert proxy.connections == 1


def test_the_proxy_resets_refuses_and_keeps_silent(echo: int) -> None:
    with Proxy(echo) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 30) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            proxy.set(Line(silent=True))
            connection.sendall(b"y")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            proxy.set(CLEAR)
            connection.settimeout(30)
            assert connection.recv(1) == b"y"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        proxy.set(Line(up=False))
        # At once or at the first byte: that is a race between two kernels' queues.
        with pytest.raises(ConnectionResetError):
            said_back(proxy.port, b"x" * 100)
