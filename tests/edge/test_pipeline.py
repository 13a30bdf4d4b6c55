"""The camera's threads: patient sources lose nothing, live ones drop by reason, the books balance at every moment."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.errors import EncoderError, EngineError, TransportError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.identity import Frame
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.riders import carrier_of, read_riders
from scene_edge.codec.sei import UTC_FREE_RUNNING, read_anchor
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoAssembler, VideoMessage
from scene_edge.edge.camera import Camera, CameraReport, finish, run_camera
from scene_edge.edge.clip import encoder_settings
from scene_edge.edge.clock import SystemClock
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.encoders import LibavEncoder
from scene_edge.edge.ledger import Ledger, LedgerSnapshot
from scene_edge.edge.networks import Networks, open_networks
from scene_edge.edge.pipeline import Pipeline
from scene_edge.edge.scene import SceneFilter
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.sources import SourceInfo, TestSource
from scene_edge.edge.spool import Lane, Limits, MemorySpool
from scene_edge.edge.transport import MemoryTransport, Message
from tests.edge.conftest import Configure
from tests.waiting import wait_until

UTC_OFFSET_NS = 1_700_000_000_000_000_000


class LiveTest(TestSource):
    """testsrc in a camera's place: it says that it is live, and comes as fast as it can."""

    __test__ = False

    def open(self) -> SourceInfo:
        info = super().open()
        return SourceInfo(info.width, info.height, info.fps, live=True)

    def read(self) -> Frame | None:
        frame = super().read()
        return None if frame is None else replace(frame, utc_offset_ns=UTC_OFFSET_NS + frame.capture_ns % 1000)


class Rig:
    """A pipeline with nothing behind it; `acknowledge` plays the server."""

    def __init__(
        self,
        config: CameraConfig,
        *,
        frames: int,
        live: bool = False,
        networks: Networks | None = None,
        encoder: Any = None,
    ) -> None:
        kind = LiveTest if live else TestSource
        self.source = kind(96, 64, 30, pace="asap", frames=frames)
        self.info = self.source.open()
        self.networks = networks if networks is not None else open_networks(config, 96, 64, strict=True)
        self.ledger = Ledger()
        self.spool = MemorySpool(Limits(round(config.spool.max_mb * 1e6)), session=11)
        self.degraded: list[str] = []
        self.encoder = encoder or LibavEncoder("libx264", encoder_settings(config, 96, 64, 30))
        self.pipeline = Pipeline(
            config,
            self.source,
            self.info,
            self.encoder,
            self.networks,
            self.spool,
            self.ledger,
            session_id=11,
            utc_quality=UTC_FREE_RUNNING,
            clock=SystemClock(),
            degrade=self.degraded.append,
        )

    def run(self) -> LedgerSnapshot:
        self.pipeline.start()
        assert self.pipeline.join(60)
        snapshot = self.ledger.snapshot()
        assert snapshot.balanced
        assert snapshot.in_pipeline == 0
        assert snapshot.spooled == self.spool.counts().frames
        return snapshot

    def messages(self) -> tuple[list[VideoMessage], list[SemanticPacket]]:
        videos, packets = [], []
        for message in self.records():
            if message[0] == "video":
                videos.append(VideoMessage.from_bytes(message[1]))
                packets += riding(videos[-1])
            else:
                packets.append(SemanticPacket.from_bytes(message[1]))
        return videos, packets

    def records(self) -> list[tuple[str, bytes]]:
        found, last = [], 0
        while (record := self.spool.next_after(last)) is not None:
            found.append((record.leaf, record.payload))
            last = record.record_id
        return found


def riding(video: VideoMessage) -> list[SemanticPacket]:
    return read_riders(video.riders, carrier_of(video)) if video.fragments == 1 else []


def numbers(videos: list[VideoMessage]) -> list[int]:
    return [unit.frame_seq for video in videos for unit in video.units]


def test_a_patient_source_loses_nothing_however_small_the_queues(configure: Configure) -> None:
    rig = Rig(configure("queues.scene=1", "queues.encode=1", "queues.semantics=1"), frames=23)
    snapshot = rig.run()
    assert (snapshot.captured, snapshot.spooled, snapshot.dropped) == (23, 23, {})
    videos, packets = rig.messages()
    assert numbers(videos) == list(range(23))
    assert [video.count for video in videos] == [5, 5, 5, 5, 3], "a GOP each"
    assert [seq for packet in packets for seq in range(packet.first_seq, packet.last_seq + 1)] == list(range(23))
    assert snapshot.semantics_coded == 23
    assert snapshot.bytes["semantic"] == sum(len(video.riders) for video in videos) > 0
    assert len(rig.records()) == len(videos), "small packets go with the pictures"
    assert all(meter.high_water <= meter.capacity for meter in rig.pipeline.meters())
    assert set(rig.pipeline.stage_ms) == {"scene", "encode", "decode", "semantics"}


def test_pictures_of_a_patient_source_leave_after_their_packet(configure: Configure) -> None:
    rig = Rig(configure(), frames=12)
    rig.run()
    covered = -1
    for leaf, payload in rig.records():
        if leaf == "semantic":
            covered = SemanticPacket.from_bytes(payload).last_seq
        else:
            video = VideoMessage.from_bytes(payload)
            covered = max([covered, *(packet.last_seq for packet in riding(video))])
            assert video.last_seq <= covered


def test_what_was_spooled_decodes_and_carries_its_identity(configure: Configure) -> None:
    rig = Rig(configure(), frames=12)
    rig.run()
    decoder, assembler = H264Decoder(), VideoAssembler()
    for video in rig.messages()[0]:
        whole = assembler.push(video)
        assert whole is not None
        for unit in whole.units:
            assert len(decoder.decode(unit.data, unit.frame_seq)) == 1
            anchor = read_anchor(unit.data)
            assert (anchor is not None) == unit.keyframe == (unit.frame_seq % 5 == 0)
            if anchor is not None:
                assert (anchor.session_id, anchor.frame_seq) == (11, unit.frame_seq)
                assert abs(anchor.utc_offset_ns - unit.utc_offset_ns) < 1_000_000


def slow(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, gate: threading.Event) -> None:
    """Every call of `kind.name` waits until `gate` is open."""
    original = getattr(kind, name)

    def waits(self: object, *args: object) -> object:
        gate.wait(30)
        return original(self, *args)

    monkeypatch.setattr(kind, name, waits)


def test_a_live_source_drops_at_the_door_and_counts(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    slow(monkeypatch, SceneFilter, "apply", gate)
    rig = Rig(configure("queues.scene=3", "semantics.enabled=false"), frames=40, live=True)
    rig.pipeline.start()
    wait_until(lambda: rig.ledger.snapshot().captured == 40)
    assert rig.ledger.snapshot().balanced
    gate.set()
    assert rig.pipeline.join(30)
    snapshot = rig.ledger.snapshot()
    assert snapshot.balanced
    assert snapshot.dropped == {"queue_full": 40 - snapshot.spooled}
    assert 3 <= snapshot.spooled <= 5
    # Numbers are given behind the encoder, so the stream has no holes.
    assert numbers(rig.messages()[0]) == list(range(snapshot.spooled))


def test_video_does_not_wait_for_semantics(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    slow(monkeypatch, SemanticEncoder, "encode", gate)
    config = configure("queues.semantics=7", "queues.scene=100", "scene.enabled=false")
    rig = Rig(config, frames=30, live=True)
    rig.pipeline.start()
    # All pictures are out while the semantic encoder has not finished one.
    wait_until(lambda: rig.spool.counts().frames == 30)
    gate.set()
    assert rig.pipeline.join(30)
    snapshot = rig.ledger.snapshot()
    assert snapshot.dropped == {}
    assert snapshot.semantics_lost["queue_full"] > 0
    assert snapshot.semantics_coded + sum(snapshot.semantics_lost.values()) == 30
    videos, packets = rig.messages()
    assert numbers(videos) == list(range(30))
    keyframes = {unit.frame_seq for video in videos for unit in video.units if unit.keyframe}
    assert {packet.first_seq for packet in packets} <= keyframes
    for packet in packets:
        assert (packet.flags == 1) == (packet.count < 5)


def test_a_live_camera_s_packets_ride_with_the_next_pictures(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder may be no more than a frame ahead of the semantics."""
    ahead = threading.Semaphore(2)
    encode, mine = LibavEncoder.encode, SemanticEncoder.encode

    def encodes(self: LibavEncoder, *args: Any) -> Any:
        ahead.acquire(timeout=30)
        return encode(self, *args)

    def mines(self: SemanticEncoder, *args: Any) -> Any:
        code = mine(self, *args)
        ahead.release()
        return code

    monkeypatch.setattr(LibavEncoder, "encode", encodes)
    monkeypatch.setattr(SemanticEncoder, "encode", mines)
    rig = Rig(configure("queues.scene=100", "queues.semantics=100", "scene.max_rise=null"), frames=23, live=True)
    snapshot = rig.run()
    assert snapshot.semantics_coded == 23
    videos, packets = rig.messages()
    riding_in = [[packet.first_seq for packet in riding(video)] for video in videos]
    # The last packet finds no picture to go with; each other goes with the GOP behind its own, or at once.
    assert sorted(seq for group in riding_in for seq in group) == [0, 5, 10, 15]
    assert {packet.first_seq for packet in packets} == {0, 5, 10, 15, 20}
    assert [leaf for leaf, _ in rig.records()].count("semantic") == 1


def test_a_packet_goes_alone_where_pictures_stay_away(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    read = LiveTest.read
    read_so_far: list[Frame | None] = []

    def reads(self: LiveTest) -> Frame | None:
        if len(read_so_far) == 5:
            gate.wait(30)
        read_so_far.append(read(self))
        return read_so_far[-1]

    monkeypatch.setattr(LiveTest, "read", reads)
    # Every picture leaves at once, so that none is left for the packet of its GOP.
    rig = Rig(configure("queues.scene=100", "queues.semantics=100", "mqtt.video_batch_ms=0"), frames=7, live=True)
    rig.pipeline.start()
    wait_until(lambda: "semantic" in [leaf for leaf, _ in rig.records()])
    gate.set()
    assert rig.pipeline.join(30)
    assert rig.ledger.snapshot().semantics_coded == 7


@pytest.mark.parametrize(
    ("batch_ms", "counts"), [(0, [1] * 12), (67, [2, 2, 1, 2, 2, 1, 2]), (100, [3, 2, 3, 2, 2]), (200, [5, 5, 2])]
)
def test_a_live_message_ends_at_its_time_at_a_keyframe_and_at_the_end(
    plain: Configure, monkeypatch: pytest.MonkeyPatch, batch_ms: int, counts: list[int]
) -> None:
    gate = threading.Event()
    slow(monkeypatch, LibavEncoder, "encode", gate)
    config = plain("queues.scene=100", "queues.encode=100", f"mqtt.video_batch_ms={batch_ms}")
    rig = Rig(config, frames=12, live=True)
    rig.pipeline.start()
    # All are there before the first is coded: no pause of a busy machine closes a message.
    wait_until(lambda: rig.pipeline.meters()[1].put == 12)
    gate.set()
    assert rig.pipeline.join(30)
    assert rig.ledger.snapshot().balanced
    videos, _ = rig.messages()
    assert [video.count for video in videos] == counts
    assert numbers(videos) == list(range(12))
    offsets = [unit.utc_offset_ns - UTC_OFFSET_NS for video in videos for unit in video.units]
    assert all(0 <= offset < 1_000_000 for offset in offsets)


def test_a_live_message_does_not_wait_for_a_picture_that_does_not_come(
    plain: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    read = TestSource.read

    def stalls(self: TestSource) -> Any:
        frame = read(self)
        if frame is not None and frame.capture_ns > 80_000_000:
            gate.wait(30)
        return frame

    monkeypatch.setattr(TestSource, "read", stalls)
    rig = Rig(plain("mqtt.video_batch_ms=150"), frames=5, live=True)
    rig.pipeline.start()
    wait_until(lambda: rig.spool.counts().frames == 3)
    assert rig.ledger.snapshot().balanced
    gate.set()
    assert rig.pipeline.join(30)
    assert numbers(rig.messages()[0]) == list(range(5))


def test_frames_in_an_open_message_are_accounted_for_when_the_encoder_fails(plain: Configure) -> None:
    config = plain("queues.scene=100", "video.gop=30", "mqtt.video_batch_ms=10000")

    class Fails(LibavEncoder):
        def encode(self, planes: Planes, pts: int) -> Any:
            if pts >= 4:
                raise EncoderError("the driver is gone")
            return super().encode(planes, pts)

    rig = Rig(config, frames=9, live=True, encoder=Fails("libx264", encoder_settings(config, 96, 64, 30)))
    rig.pipeline.start()
    with pytest.raises(EncoderError, match="driver is gone"):
        rig.pipeline.join(30)
    snapshot = rig.ledger.snapshot()
    assert snapshot.balanced
    assert snapshot.in_pipeline == snapshot.spooled == rig.spool.counts().frames == 0
    assert sum(snapshot.dropped.values()) == snapshot.captured


def test_a_camera_that_parts_begins_a_session_at_a_keyframe_and_every_frame_keeps_its_packet(
    configure: Configure,
) -> None:
    """Pictures, anchors and packets on both sides of the cut carry their own session, numbered from 0, and decode."""
    rig = Rig(configure("mqtt.video_batch_ms=100", "queues.scene=60", "queues.semantics=60"), frames=40, live=True)
    begin = rig.spool.begin_session
    rig.pipeline.part()
    rig.spool.begin_session = lambda session: rig.pipeline.encoded > 12 and begin(session)  # type: ignore[method-assign]
    snapshot = rig.run()
    assert snapshot.dropped == {}
    (old, _), (new, first) = rig.pipeline.sessions.items()
    assert first % 5 == 0
    assert first > 12
    sizes = {old: first, new: 40 - first}
    videos, packets = [], []
    for lane in (Lane.BACKFILL, Lane.LIVE):
        last = 0
        while (item := rig.spool.next_after(last, lane)) is not None:
            last = item.record_id
            if item.leaf == "video":
                videos.append(VideoMessage.from_bytes(item.payload))
                packets += riding(videos[-1])
                assert item.session == videos[-1].session_id == (old if lane is Lane.BACKFILL else new)
            else:
                packets.append(SemanticPacket.from_bytes(item.payload))
                assert item.session == packets[-1].session_id
    decoder = H264Decoder()
    for session, size in sizes.items():
        units = [unit for video in videos if video.session_id == session for unit in video.units]
        assert [unit.frame_seq for unit in units] == list(range(size))
        assert units[0].keyframe
        assert [len(decoder.decode(unit.data, unit.frame_seq)) for unit in units] == [1] * size
        covered = [seq for packet in packets if packet.session_id == session for seq in covered_by(packet)]
        assert sorted(covered) == list(range(size))
        anchors = [read_anchor(unit.data) for unit in units if unit.keyframe]
        assert {anchor.session_id for anchor in anchors if anchor} == {session}


def covered_by(packet: SemanticPacket) -> range:
    return range(packet.first_seq, packet.last_seq + 1)


def test_a_full_spool_costs_a_live_camera_whole_ends_of_gops(plain: Configure) -> None:
    rig = Rig(plain("spool.max_mb=0.006", "queues.scene=100"), frames=60, live=True)
    snapshot = rig.run()
    assert snapshot.dropped.keys() == {"spool_full"}
    kept = numbers(rig.messages()[0])
    assert snapshot.spooled == len(kept) > 0
    for seq in kept:
        # What is there can be decoded: everything from its keyframe on is there too.
        assert set(range(seq - seq % 5, seq)) <= set(kept)


def test_a_full_spool_makes_a_patient_source_wait_for_the_server(plain: Configure) -> None:
    rig = Rig(plain("spool.max_mb=0.006"), frames=60)
    rig.pipeline.start()
    committed: list[int] = []
    while len(committed) < 60:
        wait_until(lambda: rig.spool.next_after(0) is not None)
        record = rig.spool.next_after(0)
        assert record is not None
        (freed,) = rig.spool.acknowledge(11, record.last_seq)
        rig.ledger.commit(freed.frames, [])
        committed += [unit.frame_seq for unit in VideoMessage.from_bytes(freed.payload).units]
        assert rig.ledger.snapshot().balanced
        assert rig.spool.counts().bytes <= 6000 or rig.spool.counts().records == 1
    assert rig.pipeline.join(30)
    assert committed == list(range(60))
    assert rig.ledger.snapshot().dropped == {}


def test_a_picture_larger_than_the_spool_passes_when_it_is_empty(plain: Configure) -> None:
    rig = Rig(plain("spool.max_mb=0.0001", "mqtt.video_batch_ms=0"), frames=2)
    rig.pipeline.start()
    for seq in range(2):
        wait_until(lambda: rig.spool.counts().records > 0)
        rig.ledger.commit(len(rig.spool.acknowledge(11, seq)), [])
    assert rig.pipeline.join(30)
    assert rig.ledger.snapshot().committed == 2


@pytest.mark.parametrize("live", [False, True])
def test_a_failing_scene_network_degrades_to_plain_video(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    def fails(*_: object) -> Planes:
        raise EngineError("the accelerator is gone")

    monkeypatch.setattr(SceneFilter, "apply", fails)
    rig = Rig(configure("queues.scene=100"), frames=15, live=live)
    assert rig.run().spooled == 15
    assert rig.degraded == ["no scene: the accelerator is gone"]


@pytest.mark.parametrize("live", [False, True])
def test_a_failing_semantic_network_degrades_to_video_alone(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    calls = Counter[str]()
    original = SemanticEncoder.encode

    def fails(self: SemanticEncoder, *args: Any) -> bytes:
        calls["encode"] += 1
        if calls["encode"] > 7:
            raise EngineError("the accelerator is gone")
        return original(self, *args)

    monkeypatch.setattr(SemanticEncoder, "encode", fails)
    rig = Rig(configure("queues.scene=100"), frames=20, live=live)
    snapshot = rig.run()
    assert snapshot.spooled == 20
    assert snapshot.semantics_coded == 5
    assert rig.degraded == ["no semantics: the accelerator is gone"]
    assert not rig.pipeline.semantics_on


@pytest.mark.parametrize("after", [0, 7])
def test_a_failing_encoder_ends_the_stream_with_balanced_books(configure: Configure, after: int) -> None:
    config = configure()

    class Fails(LibavEncoder):
        def encode(self, planes: Planes, pts: int) -> Any:
            if pts >= after:
                raise EncoderError("the driver is gone")
            return super().encode(planes, pts)

    rig = Rig(config, frames=50, encoder=Fails("libx264", encoder_settings(config, 96, 64, 30)))
    rig.pipeline.start()
    with pytest.raises(EncoderError, match="driver is gone"):
        rig.pipeline.join(30)
    snapshot = rig.ledger.snapshot()
    assert snapshot.balanced
    assert snapshot.in_pipeline == 0
    assert snapshot.spooled == rig.spool.counts().frames
    assert snapshot.dropped["failed"] == snapshot.captured - snapshot.spooled


def test_frames_that_the_encoder_swallows_are_dropped_by_name(plain: Configure) -> None:
    config = plain()

    class Swallows(LibavEncoder):
        def encode(self, planes: Planes, pts: int) -> Any:
            return [] if pts == 3 else super().encode(planes, pts)

    rig = Rig(config, frames=10, encoder=Swallows("libx264", encoder_settings(config, 96, 64, 30)))
    assert rig.run().dropped == {"encoder": 1}


def test_stopping_ends_an_endless_source(plain: Configure) -> None:
    rig = Rig(plain(), frames=10**9)
    rig.pipeline.start()
    wait_until(lambda: rig.ledger.snapshot().captured > 20)
    rig.pipeline.stop()
    assert rig.pipeline.join(30)
    assert rig.ledger.snapshot().balanced
    assert rig.ledger.snapshot().in_pipeline == 0


def test_the_books_balance_at_every_moment(configure: Configure) -> None:
    rig = Rig(configure("queues.scene=2", "queues.semantics=2"), frames=60, live=True)
    done = threading.Event()
    wrong: list[LedgerSnapshot] = []

    def look() -> None:
        while not done.is_set():
            snapshot = rig.ledger.snapshot()
            if not snapshot.balanced:
                wrong.append(snapshot)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        rig.run()
    finally:
        done.set()
        watcher.join()
    assert not wrong


class Server:
    """Acknowledges every frame as it comes."""

    def __init__(self, camera: str = "camera-1") -> None:
        self.transport = MemoryTransport()
        self.topics = Topics(camera)
        self.transport.on_publish = self.answer

    def answer(self, message: Message) -> None:
        if message.topic == self.topics.video:
            video = VideoMessage.from_bytes(message.payload)
            ack = {"session": f"{video.session_id:016x}", "seq": video.last_seq, "epoch": 1}
            self.transport.deliver(self.topics.ack, json.dumps(ack).encode())

    def said(self, leaf: str) -> list[bytes]:
        return [message.payload for message in self.transport.sent if message.topic.endswith("/" + leaf)]


def test_a_camera_from_source_to_committed(configure: Configure) -> None:
    server = Server()
    report: CameraReport = run_camera(configure(), frames=22, transport=server.transport)
    assert report.drained
    assert (report.ledger.captured, report.ledger.committed, report.ledger.spooled) == (22, 22, 0)
    assert report.encoder == "libx264"
    assert report.engine["smc"].startswith("onnx fp32")
    assert report.degraded == ()
    assert set(report.ledger.latency_ms) == {"p50", "p95", "p99"}
    birth = json.loads(server.said("birth")[-1])
    assert birth["session"] == report.session
    assert (birth["width"], birth["height"], birth["fps"], birth["gop"]) == (96, 64, 30.0, 5)
    assert birth["semantics"] is True
    assert birth["bundle"]["name"] == "smc-tiny"
    assert birth["engine"] == report.engine
    assert birth["engine_choice"].keys() == {"scene", "smc"}
    assert (
        "not measured here" in birth["engine_choice"]["smc"] or "order of the settings" in birth["engine_choice"]["smc"]
    )
    assert server.said("status")[0] == b"online"
    assert server.said("status")[-1] == b"stopped"
    ledger = json.loads(server.said("ledger")[-1])
    assert ledger["captured"] == ledger["committed"] + ledger["spooled"] + sum(ledger["dropped"].values()) == 22
    assert ledger["kbps"].keys() == {"video", "semantic", "sei", "overhead", "total"}
    assert ledger["rss_mb"] > 0
    assert 0 <= ledger["scene_strength"] <= 1
    retained = {message.topic.rpartition("/")[2] for message in server.transport.sent if message.retain}
    assert retained == {"status", "birth"}


def test_a_camera_without_its_bundles_runs_on_and_says_so(configure: Configure) -> None:
    server = Server()
    config = configure("scene.bundle=absent-a", "semantics.bundle=absent-b")
    report = run_camera(config, frames=6, transport=server.transport)
    assert report.ledger.committed == 6
    assert [reason.partition(":")[0] for reason in report.degraded] == ["no scene", "no semantics"]
    assert server.said("status")[0].startswith(b"degraded:no scene")
    birth = json.loads(server.said("birth")[-1])
    assert birth["semantics"] is False
    assert len(birth["degraded"]) == 2


def test_a_camera_with_a_file_leaves_nothing_in_it(plain: Configure, tmp_path: Path) -> None:
    server = Server()
    report = run_camera(plain(f"spool.path={tmp_path}"), frames=40, transport=server.transport)
    assert (report.ledger.committed, report.degraded) == (40, ())
    assert (tmp_path / "camera-1.sqlite").exists()
    again = run_camera(plain(f"spool.path={tmp_path}"), frames=5, transport=Server().transport)
    assert again.ledger.backfill.recovered == 0
    ledger = json.loads(server.said("ledger")[-1])
    assert ledger["backfill"] == {"recovered": 0, "committed": 0, "waiting": 0, "dropped": {}}
    assert ledger["backfill_records"] == 0


def test_a_camera_whose_disk_fails_goes_on_and_says_so(plain: Configure, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    server = Server()
    report = run_camera(plain(f"spool.path={tmp_path / 'full'}"), frames=40, transport=server.transport)
    assert (report.ledger.committed, report.ledger.dropped) == (40, {})
    (reason,) = report.degraded
    assert reason.startswith("spool in memory alone: ")
    assert server.said("status")[0].startswith(b"degraded:spool in memory alone: ")


def test_frames_that_nobody_acknowledges_are_an_error(plain: Configure) -> None:
    transport = MemoryTransport()
    with pytest.raises(TransportError, match="9 of 9 frames were never acknowledged"):
        run_camera(plain("mqtt.drain_s=0.05"), frames=9, transport=transport)


def test_a_camera_that_is_told_to_stop_without_a_server_is_no_failure(plain: Configure) -> None:
    camera = Camera(plain("mqtt.drain_s=0.05"), transport=MemoryTransport())
    threading.Timer(0.3, camera.stop).start()
    report = finish(camera)
    assert not report.drained
    assert report.ledger.spooled == report.ledger.captured > 0


def test_a_camera_that_is_told_to_stop(plain: Configure) -> None:
    server = Server()
    camera = Camera(plain(), transport=server.transport)
    threading.Timer(0.3, camera.stop).start()
    report = finish(camera)
    assert report.ledger.captured > 0
    assert report.ledger.balanced


def test_a_stalled_encoder_is_announced_and_then_fatal(plain: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.edge.camera.TICK_S", 0.02)
    gate = threading.Event()
    slow(monkeypatch, LibavEncoder, "encode", gate)
    server = Server()
    camera = Camera(plain("watchdog.stall_s=0.05", "mqtt.drain_s=0"), frames=50, transport=server.transport)
    threading.Timer(2, gate.set).start()
    with pytest.raises(EncoderError, match="takes frames and gives none"):
        finish(camera)
    assert "encoder stalled" in camera.degraded
    gate.set()
