"""The demo: real processes, a real broker, every frame committed; and no process left behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from scene_edge.broker import LocalBroker, available_brokers
from scene_edge.codec.errors import SourceError, TransportError, UsageError
from scene_edge.demo import plan
from scene_edge.edge.sources.street import Street

for needed in ("fastapi", "uvicorn", "sqlalchemy"):
    pytest.importorskip(needed, reason=f"{needed} is missing: the demo needs the server extra")

FRAMES, FPS = 24, 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "street.mp4"
    street = Street(192, 128, FPS)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for number in range(FRAMES):
            planes = street.frame(number)
            picture = np.concatenate([plane.reshape(-1) for plane in (planes.y, planes.u, planes.v)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.reshape(-1, 192), format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "scene_edge", "demo", "--no-browser", *(str(part) for part in arguments)]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    # The temporary folder marks our processes: they have it in their command line or environment.
    return {**os.environ, "TMPDIR": str(tmp_path), **more}


def left_behind(tmp_path: Path) -> list[str]:
    """Command lines of processes that still run with our temporary folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={tmp_path}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_every_frame_of_a_file_is_committed(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    done = subprocess.run(
        command("--source", clip, "--json", out),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["frames"]["captured"] == report["frames"]["committed"] == FRAMES
    assert report["frames"]["dropped"] == {}
    if not any("no semantics" in reason for reason in report["degraded"]):
        assert report["match_rate"] == 1.0
        assert report["frames"]["joined"] == FRAMES
        assert report["kbps"]["semantic"] > 0
    kbps = report["kbps"]
    assert kbps["video"] > 0
    assert kbps["overhead"] > 0
    assert kbps["total"] == pytest.approx(sum(kbps[name] for name in ("video", "semantic", "sei", "overhead")), abs=0.1)
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] <= report["latency_ms"]["p99"]
    assert report["encoder"] == "libx264"
    assert report["rss_mb"]["camera"] > 20
    assert report["rss_mb"]["server"] > 20
    assert {"tracks", "actions", "engine", "degraded"} <= report.keys()
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("processes", [2, 4], ids=["while the server starts", "while the camera runs"])
def test_an_interrupt_ends_every_child(tmp_path: Path, processes: int) -> None:
    with subprocess.Popen(
        command("--source", "street:", "--seconds", "600"),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        deadline = time.monotonic() + 60
        while len(left_behind(tmp_path)) < processes and time.monotonic() < deadline:
            time.sleep(0.1)
        demo.send_signal(signal.SIGTERM)
        said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert not left_behind(tmp_path)


def test_a_server_that_cannot_start_is_one_line(clip: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--source", clip),
        env=environment(tmp_path, SCENE_EDGE_SERVER_JOIN__DEADLINE_MS="soon"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "SCENE_EDGE_SERVER_JOIN__DEADLINE_MS" in done.stderr
    assert not left_behind(tmp_path)


def test_what_is_no_video_is_refused_before_anything_starts(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    with pytest.raises(SourceError, match="not a video"):
        plan(str(text), None)
    with pytest.raises(SourceError, match="no such"):
        plan(str(tmp_path / "missing.mp4"), 3)


def test_a_live_source_must_be_given_a_length() -> None:
    with pytest.raises(UsageError, match="no end"):
        plan("rtsp://camera/stream", None)
    assert plan("rtsp://camera/stream", 2).frames == 60


def test_the_length_of_a_plan(clip: Path) -> None:
    assert plan(None, 2).frames == 30
    assert plan("street:7", None).source == "street:7"
    assert plan(str(clip), None).frames is None
    assert plan(str(clip), 0.5).frames == FPS // 2


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_a_local_broker_carries_messages_and_comes_back_on_its_port(kind: str, tmp_path: Path) -> None:
    if kind not in available_brokers():
        pytest.skip(f"{kind} is not installed")
    import paho.mqtt.client as mqtt

    broker = LocalBroker(tmp_path, kind=kind)
    broker.start()
    got: list[bytes] = []
    arrived, subscribed = threading.Event(), threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe("demo/#", 1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: (got.append(message.payload), arrived.set())
    client.reconnect_delay_set(0.05, 0.2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        assert subscribed.wait(10)
        # Acknowledged too, or the client would send it again to the broker that comes back.
        client.publish("demo/a", b"x" * 100_000, qos=1).wait_for_publish(10)
        assert arrived.wait(10)
        broker.kill()
        subscribed.clear()
        arrived.clear()
        broker.start()
        assert subscribed.wait(20), "the client comes back to the same port"
        client.publish("demo/b", b"again", qos=1)
        assert arrived.wait(10)
    finally:
        client.disconnect()
        client.loop_stop()
        broker.stop()
    assert got[0] == b"x" * 100_000
    assert got[-1] == b"again"


def test_an_unknown_broker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="no broker"):
        LocalBroker(tmp_path, kind="rabbit")
