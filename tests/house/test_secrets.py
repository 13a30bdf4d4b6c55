"""What must never be shown: passwords in settings and errors, whatever they are made of. And what must not listen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scene_edge.broker import free_port
from scene_edge.cli import run
from scene_edge.edge.config import in_the_clear, without_password
from scene_edge.edge.settings import load_config
from tests.data import REPOSITORY
from tests.waiting import wait_until

SECRETS = ("hunter2", "p/ss-hunter2", "p@ss-hunter2", "a:b@c/hunter2")
SOURCE = "rtsp://admin:{}@10.0.0.7/live"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_cameras_settings_show_no_secret(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", f"source.url={SOURCE.format(secret)}", "--set", f"mqtt.password='{secret}'"]
    assert run(["start", "--profile", "cpu", "--print-config", *words, "--set", "mqtt.username=gate"]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed
    values = yaml.safe_load(printed)
    assert values["mqtt"]["password"] == "***"
    assert values["source"]["url"] == "rtsp://***@10.0.0.7/live"
    assert values["mqtt"]["username"] == "gate"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_servers_settings_show_no_secret(
    secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENE_EDGE_SERVER_DATABASE", f"postgresql://u:{secret}@db/scene")
    assert run(["serve", "--print-config", "--broker", "mqtt://u:hunter2@broker"]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed
    assert yaml.safe_load(printed)["broker"]["url"] == "mqtt://***@broker"


@pytest.mark.parametrize(
    "words",
    [
        ["start", "--broker", "mqtt://u:hunter2@broker:port"],
        ["start", "--broker", "mqtt://u:hunter2@broker"],
        ["start", "--source", "gopher://u:hunter2@x/y", "--set", "scene.enabled=false", "semantics.enabled=false"],
        ["serve", "--broker", "http://u:hunter2@broker"],
        ["serve", "--broker", "mqtt://u:hunter2@broker:port"],
    ],
)
def test_errors_show_no_secret(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--profile", "cpu"] if words[0] == "start" else []
    assert run([*words, *more]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "hunter2" not in printed.out + printed.err


def test_nothing_that_prints_settings_prints_a_secret() -> None:
    config = load_config("cpu", overrides=["mqtt.password=hunter2", "mqtt.username=u"], environment={})
    assert "hunter2" not in f"{config} {config!r} {config.mqtt!r} {config.model_dump_json()}"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("rtsp://10.0.0.7/live", "rtsp://10.0.0.7/live"),
        ("rtsp://a:b@h/live?x=1", "rtsp://***@h/live?x=1"),
        ("rtsp://h/live?user=a&password=hunter2&x=1", "rtsp://h/live?user=a&password=***&x=1"),
        ("rtsp://h/live?Token=hunter2", "rtsp://h/live?Token=***"),
        ("street.mp4", "street.mp4"),
    ],
)
def test_urls_as_they_may_be_shown(url: str, masked: str) -> None:
    assert without_password(url) == masked


def listening(process: int) -> list[str]:
    """Local addresses on which a process listens or takes datagrams, from /proc."""
    own = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except OSError:
            continue
    found = []
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and f"socket:[{fields[9]}]" in own:
                found.append(f"{table} {fields[1]}")
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="there is no /proc")
def test_a_camera_listens_on_no_port(tmp_path: Path) -> None:
    """While it runs, with a broker that it cannot reach."""
    words = ["--profile", "cpu", "--source", "testsrc:", "--camera", "gate-1"]
    words += ["--broker", f"mqtt://127.0.0.1:{free_port()}", "--set", "scene.enabled=false", "semantics.enabled=false"]
    words += ["source.width=96", "source.height=64", "log.format=json", f"spool.path={tmp_path}"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        camera = subprocess.Popen(
            [sys.executable, "-m", "scene_edge", "start", *words],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        )
    try:
        wait_until(lambda: b"broker.unreachable" in log.read_bytes() or camera.poll() is not None)
        assert camera.poll() is None, log.read_text()
        assert listening(camera.pid) == []
    finally:
        camera.send_signal(signal.SIGKILL)
        camera.wait()


def test_the_look_at_proc_sees_a_port_that_is_open() -> None:
    with socket.socket() as open_port:
        open_port.bind(("127.0.0.1", 0))
        before = len(listening(os.getpid()))
        open_port.listen()
        assert len(listening(os.getpid())) == before + 1


@pytest.mark.parametrize(
    ("broker", "clear"),
    [
        ("mqtt://127.0.0.1", False),
        ("mqtt://localhost:1883", False),
        ("mqtt://[::1]:1883", False),
        ("mqtts://broker.example", False),
        ("mqtt://broker.example", True),
        ("mqtt://127.example", True),
        ("mqtt://10.0.0.7", True),
    ],
)
def test_which_brokers_are_spoken_to_in_the_clear(broker: str, clear: bool) -> None:
    assert in_the_clear(broker) == clear
