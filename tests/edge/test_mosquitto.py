"""A camera against Mosquitto over a socket: a whole run, a broker that dies and comes back, a Last Will, a refusal."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from scene_edge.codec.errors import TransportError
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.riders import carrier_of, read_riders
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoMessage
from scene_edge.edge.camera import Camera, CameraReport, finish
from scene_edge.edge.clock import SystemClock
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.spool import Limits, MemorySpool, Notices, Record
from scene_edge.edge.transport import Listener, Message, PahoTransport
from tests.edge.conftest import Configure

BINARY = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed")

AWAY_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text("\n".join([f"listener {self.port} 127.0.0.1", *lines]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert BINARY is not None
        self._process = subprocess.Popen(
            [BINARY, "-c", str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        pytest.fail("mosquitto does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path, "allow_anonymous true", "persistence false")
    made.start()
    yield made
    made.kill()


class Acker:
    """The least server: it keeps what comes and acknowledges frames that are there without a gap."""

    def __init__(self, url: str, camera: str) -> None:
        self.topics = Topics(camera)
        self._sessions: dict[int, dict[int, bytes]] = {}
        self.packets: dict[int, SemanticPacket] = {}
        self.duplicates = 0
        self.last: dict[str, bytes] = {}
        self.heard: list[tuple[str, bytes]] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="acker", protocol=mqtt.MQTTv311)
        self._client.reconnect_delay_set(0.1, 0.5)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self.topics.root}/#", 1)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", int(url.rpartition(":")[2]))
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        leaf = message.topic.rpartition("/")[2]
        payload = bytes(message.payload)
        self.last[leaf] = payload
        if leaf in ("status", "birth"):
            self.heard.append((leaf, payload))
        if leaf == "semantic":
            packet = SemanticPacket.from_bytes(payload)
            self.packets[packet.first_seq] = packet
        elif leaf == "video":
            video = VideoMessage.from_bytes(payload)
            for packet in read_riders(video.riders, carrier_of(video)):
                self.packets[packet.first_seq] = packet
            for unit in video.units:
                found = self._sessions.setdefault(video.session_id, {})
                self.duplicates += unit.frame_seq in found
                found[unit.frame_seq] = unit.data
            following = next(seq for seq in range(len(found) + 1) if seq not in found)
            ack = {"session": f"{video.session_id:016x}", "seq": following - 1, "epoch": 1}
            if following:
                client.publish(self.topics.ack, json.dumps(ack), 1)

    @property
    def videos(self) -> dict[int, bytes]:
        """Every access unit, numbered as the camera's encoder did over all sessions."""
        units: dict[int, bytes] = {}
        for found in list(self._sessions.values()):
            first = len(units)
            units |= {first + seq: data for seq, data in found.items()}
        return units


@pytest.fixture
def acker(broker: Broker) -> Iterator[Acker]:
    made = Acker(broker.url, "gate-1")
    yield made
    made.close()


def test_a_whole_run(configure: Configure, broker: Broker, acker: Acker) -> None:
    camera = Camera(configure(f"mqtt.broker={broker.url}", "camera=gate-1"), frames=43)
    report = finish(camera)
    assert report.drained
    assert (report.ledger.captured, report.ledger.committed) == (43, 43)
    assert sorted(acker.videos) == list(range(43))
    coded = [seq for packet in acker.packets.values() for seq in range(packet.first_seq, packet.last_seq + 1)]
    assert sorted(coded) == list(range(43))
    assert acker.duplicates == 0
    birth = json.loads(acker.last["birth"])
    assert birth["camera"] == "gate-1"
    wait_for(lambda: acker.last["status"] == b"stopped")
    ledger = json.loads(acker.last["ledger"])
    assert ledger["session"] == report.session
    assert ledger["captured"] == ledger["committed"] + ledger["spooled"] + sum(ledger["dropped"].values())


def wait_for(condition: Any, seconds: float = 20) -> None:
    for _ in range(int(seconds * 100)):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("what was waited for did not come")


@pytest.mark.slow
def test_a_broker_that_is_gone_for_ten_seconds_costs_nothing(
    configure: Configure, broker: Broker, acker: Acker
) -> None:
    """A live rate, so that frames keep coming while nobody takes them."""
    config = configure(
        f"mqtt.broker={broker.url}",
        "camera=gate-1",
        "source.pace=realtime",
        "source.fps=20",
        "mqtt.backoff_base_ms=50",
        "mqtt.backoff_cap_ms=400",
        # The server reconnects too; what it misses meanwhile is sent again when it stays silent.
        "mqtt.resend_after_s=1",
    )
    camera = Camera(config, frames=260)
    reports: list[CameraReport] = []
    running = threading.Thread(target=lambda: reports.append(finish(camera)))
    running.start()
    wait_for(lambda: len(acker.videos) > 20)
    broker.kill()
    captured = camera.ledger.snapshot().captured
    time.sleep(AWAY_S)
    during = camera.ledger.snapshot()
    assert during.balanced
    assert during.captured > captured  # video did not wait for the network
    assert during.spooled > 50
    broker.start()
    running.join(60)
    (report,) = reports
    ledger = report.ledger
    assert ledger.balanced
    assert ledger.captured == 260
    assert ledger.committed + sum(ledger.dropped.values()) == 260
    # A busy machine may drop a live frame before the encoder; nothing is lost behind it.
    assert set(ledger.dropped) <= {"queue_full"}
    assert sorted(acker.videos) == list(range(ledger.committed))
    assert report.connections >= 2


def test_the_will_speaks_for_a_camera_that_vanishes(broker: Broker, acker: Acker) -> None:
    """The connection breaks without a goodbye."""
    transport = PahoTransport(MqttConfig(broker=broker.url), "gate-1")
    lost: list[str] = []
    listener = Listener(lambda _topic, _payload: None, lambda: None, lost.append)
    topics = Topics("gate-1")
    transport.connect(Message(topics.status, b"offline", retain=True), [topics.ack], listener)
    transport.publish(Message(topics.status, b"online", retain=True))
    wait_for(lambda: acker.last.get("status") == b"online")
    client = transport._client
    assert client is not None
    connection = client.socket()
    assert connection is not None
    connection.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: acker.last["status"] == b"offline")
    wait_for(lambda: len(lost) == 1)
    transport.close()


def test_in_flight_goes_back_to_zero(broker: Broker) -> None:
    transport = PahoTransport(MqttConfig(broker=broker.url), "gate-1")
    progress = threading.Event()
    transport.connect(
        Message("a", b""), [], Listener(lambda _topic, _payload: None, progress.set, lambda _reason: None)
    )
    for number in range(50):
        transport.publish(Message("scene-edge/test", b"x", qos=number % 2))
    wait_for(lambda: transport.in_flight() == 0)
    assert progress.is_set()
    transport.close()


def test_a_record_that_the_broker_disconnects_us_for_goes_into_quarantine(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true", "max_packet_size 20000")
    broker.start()
    given_up: list[tuple[int, str]] = []
    spool = MemorySpool(
        Limits(1_000_000), notices=Notices(lambda record, reason: given_up.append((record.last_seq, reason)))
    )
    for seq, size in enumerate([500, 30_000, 600]):
        spool.put([Record("video", bytes(size), seq, (0,))])
    sizes: list[int] = []
    topics = Topics("gate-1")
    listener = PahoTransport(MqttConfig(broker=broker.url), "listener")
    listener.connect(
        Message("a", b""),
        [topics.video],
        Listener(lambda _topic, payload: sizes.append(len(payload)), lambda: None, lambda _reason: None),
    )
    publisher = Publisher(
        PahoTransport(MqttConfig(broker=broker.url), "gate-1"),
        spool,
        Ledger(),
        MqttConfig(broker=broker.url, backoff_base_ms=10, backoff_cap_ms=20),
        camera="gate-1",
        voice=Voice(lambda: "online", lambda: b"{}", lambda: b"{}"),
        clock=SystemClock(),
    )
    try:
        publisher.start()
        wait_for(lambda: 600 in sizes)
    finally:
        publisher.stop()
        listener.close()
        broker.kill()
    assert given_up == [(1, "quarantined")]
    assert set(sizes) == {500, 600}


def test_a_broker_that_refuses_us(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous false")
    broker.start()
    try:
        transport = PahoTransport(MqttConfig(broker=broker.url, username="a", password="wrong"), "gate-1")  # type: ignore[arg-type]
        listener = Listener(lambda _topic, _payload: None, lambda: None, lambda _reason: None)
        with pytest.raises(TransportError, match=r"Not authorized|not authori[sz]ed|Bad user"):
            transport.connect(Message("a", b""), [], listener)
        transport.close()
    finally:
        broker.kill()
