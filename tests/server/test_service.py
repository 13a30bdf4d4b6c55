"""The whole server over real sockets: mosquitto and the embedded broker, JSON, events, pictures, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from scene_edge.broker import LocalBroker, available_brokers, free_port
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, SourceError, StoreError, TransportError
from scene_edge.codec.topics import Topics, shard_of
from scene_edge.server.config import ServerConfig, load_config
from scene_edge.server.service import Server
from tests.server.camera import GOP, FakeCamera
from tests.server.test_worker import BrightSquare, EveryFifth

PATIENCE_S = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come"
        time.sleep(0.02)


def settings(folder: Path, port: int, bundle: Bundle | None = None, **changes: Any) -> ServerConfig:
    overrides = {
        "broker.url": f"mqtt://127.0.0.1:{port}",
        "web.port": 0,
        "database": f"sqlite:///{folder}/results.db",
        "fusion.engines": ["onnx"],
        "fusion.precision": "fp32",
        "fusion.threads": 1,
        "fusion.bundles": [str(bundle.path)] if bundle else [],
        **changes,
    }
    return load_config(environ={}, overrides=overrides)


@contextmanager
def running(config: ServerConfig) -> Iterator[Server]:
    server = Server(config, detector=BrightSquare(), recognisers=lambda: [EveryFifth()])
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Client:
    """The camera's side of MQTT, and whatever the server publishes."""

    def __init__(self, port: int, camera: str = "gate-1") -> None:
        self.topics = Topics(camera)
        self.received: list[tuple[str, bytes]] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"test-{camera}")
        self._client.on_message = lambda _client, _data, message: self.received.append((message.topic, message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([(self.topics.ack, 1), (self.topics.tracks, 0), (self.topics.actions, 0)])
        self._client.loop_start()

    def send(self, leaf: str, payload: bytes) -> None:
        retain = leaf in ("status", "birth")
        self._client.publish(f"{self.topics.root}/{leaf}", payload, 1, retain).wait_for_publish(PATIENCE_S)

    def acked(self) -> int:
        acks = [json.loads(payload)["seq"] for topic, payload in self.received if topic == self.topics.ack]
        return max(acks, default=-1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_from_the_broker_to_the_page(kind: str, tmp_path: Path, bundle: Bundle) -> None:
    if kind not in available_brokers():
        pytest.skip(f"{kind} is not installed")
    camera = FakeCamera(bundle, frames=3 * GOP)
    with LocalBroker(tmp_path, kind=kind) as broker, running(settings(tmp_path, broker.port, bundle)) as server:
        server.wait_connected(PATIENCE_S)
        client = Client(broker.port)
        for leaf, payload in camera.stream():
            client.send(leaf, payload)
        ledger = {"captured": 15, "committed": 15, "spooled": 0, "dropped": {}, "backfill_frames": 7, "rss_mb": 99.5}
        ledger["scene_strength"] = 0.25
        client.send("ledger", json.dumps(ledger).encode())
        until(lambda: client.acked() == 3 * GOP - 1, "the last acknowledgement")
        until(lambda: any(topic.endswith("/actions") for topic, _ in client.received), "an action")
        assert server.drain(PATIENCE_S)
        assert server.store.count_frames("gate-1", camera.session) == 3 * GOP
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as web:
            (view,) = web.get("/api/cameras").json()
            check_view(view, camera)
            check_web(web)
        client.close()


def check_view(view: dict[str, Any], camera: FakeCamera) -> None:
    assert view["camera"] == "gate-1"
    assert view["status"] == "online"
    assert view["session"] == camera.session
    assert view["ledger"] == {"captured": 15, "committed": 15, "spooled": 0, "dropped": {}, "backfill": 7}
    assert view["match_rate"] == 1.0
    assert set(view["kbps"]) == {"video", "semantic", "sei", "overhead", "total"}
    assert view["latency_ms"]["p99"] >= view["latency_ms"]["p50"] > 0
    assert view["encoder"] == "libx264"
    assert view["engine"]["fusion"] == "onnx fp32"
    assert view["rss_mb"]["camera"] == 99.5
    assert view["scene_strength"] == 0.25
    assert view["server"]["passed"] == 0
    assert view["degraded"] == []
    assert view["actions"][0]["label"] == "wave"


def check_web(web: httpx.Client) -> None:
    for kind in ("lossy", "fused"):
        answer = web.get(f"/api/cameras/gate-1/picture/{kind}.jpg")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.content[:3] == b"\xff\xd8\xff"
        assert int(answer.headers["x-frame-seq"]) % 5 == 0
    assert web.get("/api/cameras/gate-1/picture/raw.jpg").status_code == 404
    assert web.get("/api/cameras/nobody/picture/lossy.jpg").status_code == 404
    assert web.get("/api/cameras/nobody").status_code == 404
    assert web.get("/api/cameras/nobody/history").status_code == 404
    assert web.get("/api/cameras/gate-1").json()["camera"] == "gate-1"
    assert isinstance(web.get("/api/cameras/gate-1/history").json(), list)
    assert web.get("/healthz").json()["parts"] == {"broker": "ok", "store": "ok"}
    metrics = web.get("/metrics").text
    assert 'scene_edge_match_ratio{camera="gate-1"} 1.0' in metrics
    assert 'scene_edge_scene_strength{camera="gate-1"} 0.25' in metrics
    assert 'scene_edge_committed_frames_total{camera="gate-1"} 15.0' in metrics
    assert 'scene_edge_latency_ms{camera="gate-1",quantile="p95"}' in metrics
    assert 'scene_edge_backfill_frames{camera="gate-1"} 7.0' in metrics
    assert "scene_edge_up 1.0" in metrics
    page = web.get("/")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for asset in ("page.js", "charts.js", "picture.js", "page.css", "icon.svg", "vendor/uplot/uPlot.iife.min.js"):
        assert web.get(f"/static/{asset}").status_code == 200, asset
    assert web.get("/static/../app.py").status_code == 404
    assert web.post("/api/cameras").status_code == 405
    check_events(web)


def check_events(web: httpx.Client) -> None:
    seen: dict[str, Any] = {}
    with web.stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                seen[name] = json.loads(line[6:])
            if len(seen) == 2:
                break
    assert seen["cameras"]["cameras"][0]["camera"] == "gate-1"
    assert seen["cameras"]["health"]["status"] == "ok"
    assert seen["picture"]["fused"] is True
    assert seen["picture"]["tracks"][0]["label"] == "person"


def test_pages_beyond_the_limit_are_turned_away(tmp_path: Path) -> None:
    config = settings(tmp_path, free_port(), **{"web.max_listeners": 1})
    with running(config) as server, httpx.Client(base_url=server.url, timeout=PATIENCE_S) as web:
        with web.stream("GET", "/api/events") as first:
            assert first.status_code == 200
            assert web.get("/api/events").status_code == 503

        def free() -> bool:
            with web.stream("GET", "/api/events") as answer:
                return answer.status_code == 200

        until(free, "a free place")


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_the_broker_keeps_what_comes_while_the_server_is_away(tmp_path: Path, bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=4 * GOP)
    messages = list(camera.stream())
    with LocalBroker(tmp_path, kind="mosquitto") as broker:
        config = settings(tmp_path, broker.port, bundle)
        client = Client(broker.port)
        with running(config) as server:
            server.wait_connected(PATIENCE_S)
            for leaf, payload in messages[: 2 + GOP + 1]:
                client.send(leaf, payload)
            until(lambda: client.acked() == GOP - 1, "the first GOP's acknowledgement")
        for leaf, payload in messages[2 + GOP + 1 :]:
            client.send(leaf, payload)
        with running(config) as server:
            until(lambda: client.acked() == 4 * GOP - 1, "the rest")
            assert server.store.count_frames("gate-1", camera.session) == 4 * GOP
            assert server.hub.cameras()[0]["match_rate"] == 1.0
        client.close()


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_a_broker_that_comes_back_empty_is_subscribed_to_again(tmp_path: Path, bundle: Bundle) -> None:
    camera, port = FakeCamera(bundle, frames=2 * GOP), free_port()
    messages = list(camera.stream())
    with running(settings(tmp_path, port, bundle)) as server:
        with LocalBroker(tmp_path, kind="mosquitto", port=port) as broker:
            server.wait_connected(PATIENCE_S)
            client = Client(broker.port)
            for leaf, payload in messages[: 2 + GOP + 1]:
                client.send(leaf, payload)
            until(lambda: client.acked() == GOP - 1, "the first GOP's acknowledgement")
            client.close()
        until(lambda: not server.connected, "the end of the connection")
        with LocalBroker(tmp_path, kind="mosquitto", port=port) as broker:
            server.wait_connected(PATIENCE_S)
            client = Client(broker.port)
            for leaf, payload in messages:  # the camera knows of no ack, so it begins again
                client.send(leaf, payload)
            until(lambda: client.acked() == 2 * GOP - 1, "the last acknowledgement")
            assert server.store.count_frames("gate-1", camera.session) == 2 * GOP
            client.close()


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_servers_share_the_cameras_out_by_shard(tmp_path: Path) -> None:
    names = ["gate-1", next(name for name in (f"gate-{n}" for n in range(2, 99)) if shard_of(name) >= 128)]
    cameras = [FakeCamera(None, frames=2 * GOP, camera=name) for name in names]
    with LocalBroker(tmp_path, kind="mosquitto") as broker:
        halves = [
            settings(tmp_path, broker.port, **{"ownership.shards": shards, "broker.client_id": shards})
            for shards in ("0-127", "128-255")
        ]
        with running(halves[0]) as low, running(halves[1]) as high:
            clients = [Client(broker.port, name) for name in names]
            for server in (low, high):
                server.wait_connected(PATIENCE_S)
            for camera, client in zip(cameras, clients, strict=True):
                for leaf, payload in camera.stream():
                    client.send(leaf, payload)
            for client in clients:
                until(lambda client=client: client.acked() == 2 * GOP - 1, "an acknowledgement")
                client.close()
            for server, name in ((low, names[0]), (high, names[1])):
                assert [view["camera"] for view in server.hub.cameras()] == [name]
                assert server.store.count_frames(name) == 2 * GOP


def test_a_second_server_stands_by_until_the_first_one_stops(tmp_path: Path) -> None:
    config = settings(tmp_path, free_port(), **{"ownership.lease_s": 0.4})
    with running(config) as first:
        with running(config) as second:
            with httpx.Client(base_url=second.url, timeout=PATIENCE_S) as web:
                answer = web.get("/healthz")
                assert (answer.status_code, answer.json()["role"]) == (200, "standby")
            with pytest.raises(TransportError, match="another server"):
                second.wait_connected(0.1)
            assert first.hub.role == "owner"
            first.stop()
            until(lambda: second.hub.role == "owner", "the takeover")
            with pytest.raises(TransportError, match="no connection"):
                second.wait_connected(0.1)


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_foreign_and_bad_messages_are_counted_and_change_nothing(tmp_path: Path, bundle: Bundle) -> None:
    with LocalBroker(tmp_path, kind="mosquitto") as broker, running(settings(tmp_path, broker.port)) as server:
        server.wait_connected(PATIENCE_S)
        client = Client(broker.port)
        for topic, payload, retain in (
            ("scene/1/0/gate-1/video", b"x", False),  # another shard's
            ("scene/1/1/bad camera/video", b"x", False),
            (client.topics.video, b"x" * 200_000, False),
            (client.topics.status, b"", True),
        ):
            client._client.publish(topic, payload, 1, retain).wait_for_publish(PATIENCE_S)
        until(lambda: sum(server.dropped.values()) == 3, "the counts")
        assert server.dropped == {"bad_topic": 2, "too_large": 1}
        assert server.hub.cameras() == []
        client.close()


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_garbage_that_a_broker_retains_is_counted_and_the_camera_works(tmp_path: Path) -> None:
    """It comes with every subscription, before anything true."""
    camera = FakeCamera(None)
    with LocalBroker(tmp_path, kind="mosquitto") as broker:
        client = Client(broker.port)
        for leaf in ("video", "semantic", "birth", "ledger", "status"):
            topic = f"{client.topics.root}/{leaf}"
            client._client.publish(topic, b"\xff[garbage", 1, True).wait_for_publish(PATIENCE_S)
        with running(settings(tmp_path, broker.port)) as server:
            server.wait_connected(PATIENCE_S)
            until(lambda: server.dropped == {"retained_media": 2}, "the counts")
            for leaf, payload in camera.stream():
                client.send(leaf, payload)
            until(lambda: client.acked() == 2 * GOP - 1, "the last acknowledgement")
            (view,) = server.hub.cameras()
        client.close()
    assert view["status"] == "online"
    assert view["server"]["dropped"] == {"birth_corrupt": 1, "ledger_corrupt": 1}


@pytest.mark.skipif("mosquitto" not in available_brokers(), reason="mosquitto is not installed")
def test_worker_processes_commit_acknowledge_and_show_as_one_process_does(tmp_path: Path) -> None:
    """Real processes, the broker's connection and the page in this one; and a database that all of them write to."""
    changes = {"engine.processes": 2, "analytics.detector": "off", "analytics.actions": [], "fusion.enabled": False}
    cameras = [FakeCamera(None, camera=name) for name in ("gate-1", "gate-2", "gate-3", "gate-4")]
    with LocalBroker(tmp_path, kind="mosquitto") as broker:
        server = Server(settings(tmp_path, broker.port, **changes))
        server.start()
        server.wait_connected(PATIENCE_S)
        clients = [Client(broker.port, camera.camera) for camera in cameras]
        for camera, client in zip(cameras, clients, strict=True):
            for leaf, payload in camera.stream():
                client.send(leaf, payload)
        for client in clients:
            until(lambda client=client: client.acked() == 2 * GOP - 1, "the last acknowledgement")  # type: ignore[misc]
        assert server.drain(PATIENCE_S)
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as web:
            views = web.get("/api/cameras").json()
            workers = web.get("/healthz").json()["workers"]
            assert web.get("/api/cameras/gate-1/picture/lossy.jpg").content[:2] == b"\xff\xd8"
            assert web.get("/api/cameras/gate-1/picture/fused.jpg").status_code == 404
            assert web.get("/api/cameras/gate-1/history").status_code == 200
            assert web.get("/api/cameras/nobody/history").status_code == 404
            metrics = web.get("/metrics").text
            with web.stream("GET", "/api/events") as events:
                told = next(line for line in events.iter_lines() if line.startswith("data:"))
        for client in clients:
            client.close()
        rows = [server.store.count_frames(camera.camera, camera.session) for camera in cameras]
        server.stop()
    assert rows == [2 * GOP] * 4
    assert [view["camera"] for view in views] == [camera.camera for camera in cameras]
    assert {view["server"]["committed"] for view in views} == {2 * GOP}
    assert all(worker["cameras"] for worker in workers)
    assert [worker["state"] for worker in workers] == ["running"] * 2
    assert len(json.loads(told.removeprefix("data:"))["cameras"]) == 4
    assert "scene_edge_worker_processes 2.0" in metrics
    assert "scene_edge_worker_restarts_total 0.0" in metrics


def test_without_a_broker_the_page_says_so(tmp_path: Path) -> None:
    with running(settings(tmp_path, free_port())) as server, httpx.Client(base_url=server.url) as web:
        answer = web.get("/healthz")
        assert answer.status_code == 503
        assert answer.json()["parts"]["broker"] == "not connected"
        assert web.get("/api/cameras").json() == []
        assert "scene_edge_up 0.0" in web.get("/metrics").text


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    config = settings(tmp_path, free_port())
    with running(config) as server, pytest.raises(ConfigError, match="cannot listen"):
        Server(
            config.model_copy(update={"web": config.web.model_copy(update={"port": server.port})}),
            detector=BrightSquare(),
        ).start()
    with pytest.raises(StoreError, match="cannot"):
        Server(settings(tmp_path, 1, database=f"sqlite:///{tmp_path}/no/such/folder/x.db"))
    with pytest.raises(ConfigError, match="not a database URL"):
        Server(settings(tmp_path, 1, database="nonsense"))
    with pytest.raises(SourceError, match="no such detector"):
        Server(settings(tmp_path, 1, **{"analytics.detector": f"{tmp_path}/none.onnx"}))
