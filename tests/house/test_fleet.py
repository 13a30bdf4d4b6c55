"""A fleet's certificates and access list against Mosquitto: who gets in, and what each may say and hear."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from scene_edge.broker import free_port, mosquitto_path
from scene_edge.codec.errors import TransportError
from scene_edge.codec.topics import Topics
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.transport import Listener, Message, PahoTransport
from scene_edge.server.config import BrokerConfig, LimitsConfig
from scene_edge.server.fleet import SERVER, Fleet
from scene_edge.server.fleet_broker import access_list, settings
from scene_edge.server.hub import Hub
from scene_edge.server.ingest import Ingest
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed")

CAMERAS = ("gate-1", "gate-2")
LEAVES = ("video", "semantic", "status", "birth", "ledger", "ack", "tracks", "actions", "set/crf", "state/crf")
SAID_BY_A_CAMERA = {"video", "semantic", "status", "birth", "ledger", "state/crf"}
HEARD_BY_A_CAMERA = {"ack", "set/crf"}
ALIEN = ("scene/2/0/gate-1/video", "scene/1/0/gate-1", "scene/1/0/gate-1/video/x", "other", "scene-edge/doctor")
WATCHER = "watcher"
"""Sees and says everything, for the test alone."""


@dataclass
class Ear:
    """A connection, and what it heard as (topic, payload)."""

    transport: PahoTransport
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class Site:
    """A fleet and its broker, listening on 127.0.0.1 under the name localhost."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet.create(folder / "fleet", "localhost")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        broker = folder / "fleet/broker"
        for name in (*CAMERAS, WATCHER, "gone"):
            self.fleet.add_device(name)
        self.fleet.add_device("late", now=datetime.now(timezone.utc) - timedelta(days=1000))
        self.fleet.revoke("gone")
        (broker / "acl").write_text(access_list() + f"\nuser {WATCHER}\ntopic readwrite #\n")
        self.conf = broker / "mosquitto.conf"
        text = settings(broker, self.port).replace(f"listener {self.port}", f"listener {self.port} 127.0.0.1")
        self.conf.write_text(text + "user root\n")

    def start(self) -> None:
        binary = mosquitto_path()
        assert binary is not None
        self._process = subprocess.Popen([binary, "-c", str(self.conf)], stderr=subprocess.DEVNULL)
        wait_until(self._listens)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def config(self, who: str | None, *, host: str = "localhost", fleet: Path | None = None) -> MqttConfig:
        folder = fleet or self.fleet.folder
        named = folder / ("server" if who == SERVER else f"devices/{who}")
        own = {"cert_file": named / "client.crt", "key_file": named / "client.key"} if who is not None else {}
        return MqttConfig(broker=f"mqtts://{host}:{self.port}", ca_file=self.fleet.folder / "ca/ca.crt", **own)

    def connect(self, config: MqttConfig, client_id: str, topics: tuple[str, ...] = (), will: str = "") -> Ear:
        ear = Ear(PahoTransport(config, client_id))
        listener = Listener(lambda topic, payload: ear.heard.append((topic, payload)), lambda: None, ear.lost.append)
        own = Message(will or Topics(client_id if client_id in CAMERAS else "x").ledger, b"will", qos=0)
        ear.transport.connect(own, list(topics), listener)
        return ear


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.start()
    yield made
    made.stop()


def test_a_camera_with_its_certificate_gets_in(site: Site) -> None:
    site.connect(site.config("gate-1"), "gate-1").transport.close()


@pytest.mark.parametrize("who", [None, "late", "gone"], ids=["no certificate", "expired", "revoked"])
def test_who_has_no_valid_certificate_stays_outside(site: Site, who: str | None) -> None:
    with pytest.raises(TransportError):
        site.connect(site.config(who), "gate-1")


def test_a_certificate_of_another_authority_stays_outside(site: Site, tmp_path: Path) -> None:
    other = Fleet.create(tmp_path / "other", "localhost")
    other.add_device("gate-1")
    with pytest.raises(TransportError):
        site.connect(site.config("gate-1", fleet=other.folder), "gate-1")


def test_a_certificate_cannot_issue_others(site: Site, tmp_path: Path) -> None:
    """A camera's key signs a certificate for the server's name: the broker sees that it may not."""
    camera = site.fleet.folder / "devices/gate-1"
    (tmp_path / "ca").mkdir()
    shutil.copy(camera / "client.key", tmp_path / "ca/ca.key")
    shutil.copy(camera / "client.crt", tmp_path / "ca/ca.crt")
    (tmp_path / "ca/issued.json").write_text("[]")
    forged = Fleet.open(tmp_path).add_device("gate-2")
    (forged / "client.crt").write_bytes((forged / "client.crt").read_bytes() + (camera / "client.crt").read_bytes())
    with pytest.raises(TransportError):
        site.connect(site.config("gate-2", fleet=tmp_path), "gate-2")


def test_the_brokers_own_certificate_lets_nobody_in(site: Site) -> None:
    """It is good for a server's end of TLS only."""
    broker = site.fleet.folder / "broker"
    config = site.config(None).model_copy(
        update={"cert_file": broker / "broker.crt", "key_file": broker / "broker.key"}
    )
    with pytest.raises(TransportError):
        site.connect(config, "gate-1")


# After a handshake that failed, paho leaves closing the socket to the garbage collector, which grumbles.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_of_another_name_or_authority_is_refused_by_the_camera(site: Site, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"(?i)certificate|mismatch"):
        site.connect(site.config("gate-1", host="127.0.0.1"), "gate-1")
    other = Fleet.create(tmp_path / "other", "localhost")
    doubtful = site.config("gate-1").model_copy(update={"ca_file": other.folder / "ca/ca.crt"})
    with pytest.raises(TransportError, match=r"(?i)certificate"):
        site.connect(doubtful, "gate-1")


def test_without_tls_nobody_gets_in(site: Site) -> None:
    with pytest.raises(TransportError):
        site.connect(MqttConfig(broker=f"mqtt://localhost:{site.port}"), "gate-1")


def topics_of(camera: str) -> dict[str, str]:
    return {leaf: f"{Topics(camera).root}/{leaf}" for leaf in LEAVES}


def may_say(who: str) -> set[str]:
    if who == SERVER:
        return {topics_of(camera)[leaf] for camera in CAMERAS for leaf in ("ack", "tracks", "actions")}
    return {topics_of(who)[leaf] for leaf in SAID_BY_A_CAMERA}


def may_hear(who: str) -> set[str]:
    if who == SERVER:
        leaves = ("video", "semantic", "status", "birth", "ledger")
        return {topics_of(camera)[leaf] for camera in CAMERAS for leaf in leaves}
    return {topics_of(who)[leaf] for leaf in HEARD_BY_A_CAMERA}


EVERYTHING = [*(topic for camera in CAMERAS for topic in topics_of(camera).values()), *ALIEN]


@pytest.mark.parametrize("who", [*CAMERAS, SERVER])
def test_each_says_only_what_is_its_own(site: Site, who: str) -> None:
    watcher = site.connect(site.config(WATCHER), WATCHER, ("#",))
    speaker = site.connect(site.config(who), who)
    last = sorted(may_say(who))[0]
    for topic in EVERYTHING:
        speaker.transport.publish(Message(topic, b"said"))
    speaker.transport.publish(Message(last, b"over"))
    wait_until(lambda: (last, b"over") in watcher.heard)
    speaker.transport.close()
    watcher.transport.close()
    assert {topic for topic, payload in watcher.heard if payload == b"said"} == may_say(who)


@pytest.mark.parametrize("who", [*CAMERAS, SERVER])
def test_each_hears_only_what_is_for_it(site: Site, who: str) -> None:
    listener = site.connect(site.config(who), who, ("#", "scene/1/+/+/#", *EVERYTHING))
    speaker = site.connect(site.config(WATCHER), WATCHER)
    last = sorted(may_hear(who))[0]
    for topic in EVERYTHING:
        speaker.transport.publish(Message(topic, b"said"))
    speaker.transport.publish(Message(last, b"over"))
    wait_until(lambda: (last, b"over") in listener.heard)
    listener.transport.close()
    speaker.transport.close()
    assert {topic for topic, payload in listener.heard if payload == b"said"} == may_hear(who)


def test_the_client_id_is_the_certificates_name(site: Site) -> None:
    """Who asks for another's id gets its own, and does not end the other's connection."""
    first = site.connect(site.config("gate-1"), "gate-1", (Topics("gate-1").ack,))
    second = site.connect(site.config("gate-2"), "gate-1")
    speaker = site.connect(site.config(SERVER), SERVER)
    speaker.transport.publish(Message(Topics("gate-1").ack, b"still there"))
    wait_until(lambda: bool(first.heard))
    assert first.lost == []
    for ear in (first, second, speaker):
        ear.transport.close()


def test_no_camera_leaves_a_will_on_anothers_topic(site: Site) -> None:
    watcher = site.connect(site.config(WATCHER), WATCHER, ("#",))
    try:
        vanishing = site.connect(site.config("gate-2"), "gate-2", will=Topics("gate-1").status)
    except TransportError:
        pass  # refused at once is as good
    else:
        client = vanishing.transport._client
        assert client is not None
        connection = client.socket()
        assert connection is not None
        connection.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: bool(vanishing.lost))
        vanishing.transport.close()
    marker = site.connect(site.config("gate-2"), "gate-2")
    marker.transport.publish(Message(Topics("gate-2").status, b"over"))
    wait_until(lambda: (Topics("gate-2").status, b"over") in watcher.heard)
    marker.transport.close()
    watcher.transport.close()
    assert not [topic for topic, _ in watcher.heard if topic == Topics("gate-1").status]


class Deaf:
    """An engine that only writes down which camera spoke."""

    def __init__(self) -> None:
        self.cameras: list[str] = []

    def submit(self, camera: str, _message: object) -> None:
        self.cameras.append(camera)


def test_the_server_works_with_its_certificate(site: Site) -> None:
    own = site.fleet.folder / "server"
    config = BrokerConfig(
        url=f"mqtts://localhost:{site.port}",
        ca_file=own / "ca.crt",
        cert_file=own / "client.crt",
        key_file=own / "client.key",
    )
    engine = Deaf()
    ingest = Ingest(config, engine, LimitsConfig(), Hub())  # type: ignore[arg-type]
    ingest.start()
    try:
        assert ingest.wait_connected(20)
        camera = site.connect(site.config("gate-1"), "gate-1", (Topics("gate-1").ack,))
        camera.transport.publish(Message(Topics("gate-1").status, b"online"))
        wait_until(lambda: engine.cameras == ["gate-1"])
        ingest.publish(Topics("gate-1").ack, b"{}", 1)
        wait_until(lambda: bool(camera.heard))
        camera.transport.close()
    finally:
        ingest.stop()


def test_a_camera_is_locked_out_once_its_certificate_is_taken_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.start()
    try:
        site.connect(site.config("gate-1"), "gate-1").transport.close()
        site.fleet.revoke("gate-1")
        site.stop()
        site.start()
        with pytest.raises(TransportError):
            site.connect(site.config("gate-1"), "gate-1")
        again = site.fleet.add_device("gate-1")
        assert (again / "client.key").is_file()
        site.connect(site.config("gate-1"), "gate-1").transport.close()
    finally:
        site.stop()
