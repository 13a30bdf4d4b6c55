"""The camera's part of bench on tiny bundles: every stage is listed, none is invented, and the limit is the slowest."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scene_edge.broker import LocalBroker, available_brokers
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError, SourceError, TransportError
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.videomessage import VideoMessage
from scene_edge.edge import bench_stages
from scene_edge.edge.bench import CameraBench, FixedOpener
from scene_edge.edge.bench_report import limit_of, machine
from scene_edge.edge.bench_stages import capture, messages, mining, published
from scene_edge.edge.choice import Chosen, usual_size
from scene_edge.edge.settings import load_config
from scene_edge.edge.transport import MemoryTransport
from scene_edge.inference.roofline import Peaks
from scene_edge.inference.stages import CAMERA_STAGES, StageRow
from tests.edge.conftest import Configure

SIZE = (96, 64)
PEAKS = Peaks(1, 1e9, {("onnx", "fp32"): 1e9}, {})
NO_BROKER = "no broker can be started here"


def bench_of(configure: Configure, *overrides: str, frames: int = 12) -> CameraBench:
    return CameraBench(configure("source.url=street:", *overrides), SIZE, frames, PEAKS)


def test_every_stage_has_a_row_with_figures_or_a_reason(configure: Configure) -> None:
    bench = bench_of(configure)
    bench.run(("onnx", "litert"), NO_BROKER)
    assert [row.stage for row in bench.rows] == list(CAMERA_STAGES)
    for row in bench.rows:
        assert (row.width, row.height) == SIZE
        if row.stage == "publish":
            assert row == StageRow("publish", "", "mqtt", None, *SIZE, reason=NO_BROKER)
            continue
        assert row.reason == ""
        assert row.ms_p50 is not None
        assert row.ms_p95 is not None
        assert row.fps is not None
        assert math.isfinite(row.fps)
        assert 0 < row.ms_p50 <= row.ms_p95
    by_stage = {row.stage: row for row in bench.rows}
    assert (by_stage["scene"].model, by_stage["scene"].precision) == ("scene-tiny", "fp32")
    assert by_stage["smc_encode"].proven
    assert not by_stage["scene"].proven, "the tiny filter ships no golden run"
    assert by_stage["h264_encode"].model == "libx264"
    assert by_stage["capture"].peak_ratio is None
    material = bench.material
    assert len(material.frames) == len(material.filtered) == len(material.units) == len(material.pictures) == 12
    assert sum(packet.count for packet in material.packets) == 12


def test_scene_for_machines_is_timed_as_a_whole(configure: Configure) -> None:
    bench = bench_of(configure, "scene.bundle=where-tiny", "semantics.enabled=false")
    bench.run(("onnx",), NO_BROKER)
    (row,) = (row for row in bench.rows if row.stage == "scene")
    assert (row.model, row.engine, row.reason) == ("where-tiny", "onnx", "")
    assert row.ms_p50 is not None
    assert row.peak_ratio is None, "most of it is no network"
    assert len(bench.material.filtered) == 12


def test_what_cannot_run_is_listed_with_its_reason_and_the_rest_goes_on(configure: Configure) -> None:
    bench = bench_of(configure, "scene.bundle=absent", "semantics.enabled=false")
    bench.run(("onnx",), NO_BROKER)
    reasons = {row.stage: row.reason for row in bench.rows if row.ms_p50 is None}
    assert reasons.keys() == {"scene", "smc_encode", "entropy", "publish"}
    assert "no such bundle" in reasons["scene"]
    assert reasons["smc_encode"] == "switched off in the settings"
    assert "no engine ran smc_encode" in reasons["entropy"]
    assert len(bench.material.units) == 12


def test_an_engine_without_an_artefact_is_no_candidate(configure: Configure) -> None:
    bench = bench_of(configure)
    bench.run(("litert",), NO_BROKER)
    reasons = {row.stage: row.reason for row in bench.rows if row.ms_p50 is None}
    assert reasons["scene"] == "bundle scene-tiny has no artefact for litert"
    assert reasons["smc_encode"] == "bundle smc-tiny has no artefact for litert"


def test_only_the_very_candidate_is_opened(zoo: Path) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    opener = FixedOpener("onnx", "int8", "encoder", 1)
    with pytest.raises(EngineError, match="at fp32 only"):
        opener(bundle, "encoder", 16, 24)
    opener.close()
    opener = FixedOpener("onnx", "fp32", "encoder", 1)
    opener(bundle, "encoder", 16, 24)
    assert opener.proven
    opener.close()


def test_pictures_come_at_the_size_asked_for(configure: Configure) -> None:
    config = configure("source.url=street:", "source.width=128", "source.height=96")
    found = capture(config, SIZE, 3)
    assert {(frame.planes.width, frame.planes.height) for frame in found.frames} == {SIZE}
    assert len(found.times_ms) == 3
    with pytest.raises(SourceError, match="no such video file"):
        capture(configure("source.url=absent.mp4"), SIZE, 3)


def test_latents_stand_for_as_many_frames_as_the_bundle_says() -> None:
    units = [AccessUnit(b"x", seq, seq, seq % 5 == 0) for seq in range(12)]
    assert [index for index, _ in mining(units, 4)] == [0, 4, 5, 9, 10]
    assert [index for index, key in mining(units, 4) if key] == [0, 5, 10]


def test_messages_hold_what_a_live_camera_puts_into_one(configure: Configure) -> None:
    period_ns = 40_000_000
    units = [AccessUnit(b"\0\0\1\x65" + bytes(50), seq, seq * period_ns, seq % 10 == 0) for seq in range(20)]
    payloads = messages(configure(), units, SIZE, 25)
    counts = [VideoMessage.from_bytes(parts[0]).count for parts in payloads]
    assert counts == [5, 5, 5, 5]
    alone = messages(configure("mqtt.video_batch_ms=0"), units, SIZE, 25)
    assert len(alone) == 20


def test_publishing_sends_every_message_and_says_when_nobody_takes_it(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = MemoryTransport()
    times_ms = published(transport, configure(), [[b"a"], [b"b", b"c"], [b"d"]])
    assert len(times_ms) == 3
    assert [message.payload for message in transport.sent[-4:]] == [b"a", b"b", b"c", b"d"]
    transport.down = True
    with pytest.raises(TransportError, match="cannot connect"):
        published(transport, configure(), [[b"a"]])
    stuck = MemoryTransport()
    monkeypatch.setattr(stuck, "in_flight", lambda: 1)
    monkeypatch.setattr(bench_stages, "PUBLISH_TIMEOUT_S", 0.01)
    with pytest.raises(TransportError, match="takes nothing"):
        published(stuck, configure(), [[b"a"]])


def test_publish_goes_through_a_real_socket(configure: Configure, tmp_path: Path) -> None:
    if not available_brokers():
        pytest.skip("neither mosquitto nor amqtt is installed")
    bench = bench_of(configure, "scene.enabled=false", "semantics.enabled=false")
    with LocalBroker(tmp_path) as broker:
        bench.run(("onnx",), (broker.kind, broker.url))
    row = bench.rows[-1]
    assert (row.stage, row.model, row.engine, row.reason) == ("publish", broker.kind, "mqtt", "")
    assert row.ms_p50


def row(stage: str, fps: float | None, engine: str = "libav", precision: str | None = None) -> StageRow:
    ms = 1000 / fps if fps else None
    return StageRow(stage, "m", engine, precision, 96, 64, ms, ms, fps, reason="" if fps else "absent")


def test_the_slowest_stage_is_the_limit_and_drawing_is_not_the_cameras(configure: Configure) -> None:
    rows = [
        row("capture", 5),
        row("scene", 40, "onnx", "int8"),
        row("scene", 25, "openvino", "int8"),
        row("h264_encode", 100),
        row("publish", None),
    ]
    config = configure("source.url=street:", "scene.engines=[openvino,onnx]")
    limit = limit_of(rows, config, {})
    assert limit is not None
    assert (limit.stage, limit.fps, limit.in_turn_fps) == ("scene", 25, 20)
    assert limit.sentence.startswith("scene (m on openvino int8) limits the camera, at 25.0 frames/s")
    assert limit.sentence.endswith("without publish, which did not run.")
    chosen = limit_of(rows, config, {"scene": Chosen("onnx", "int8", 25.0, "")})
    assert chosen is not None
    assert chosen.fps == 40
    filmed = limit_of(rows, configure("source.url=street.mp4"), {})
    assert filmed is not None
    assert filmed.stage == "capture"
    assert limit_of([row("scene", None)], config, {}) is None


def test_the_order_of_the_settings_says_what_is_in_use(configure: Configure) -> None:
    rows = [row("scene", 10, "onnx", "fp32"), row("scene", 30, "onnx", "int8"), row("scene", 60, "litert", "int8")]
    for engines, precision, fps in (("[litert,onnx]", "int8", 60), ("[onnx]", "int8", 30), ("[onnx]", "fp32", 10)):
        config = configure("source.url=street:", f"scene.engines={engines}", f"scene.precision={precision}")
        limit = limit_of(rows, config, {})
        assert limit is not None
        assert limit.fps == fps


def test_the_machine_and_the_usual_size_are_told(configure: Configure) -> None:
    told = machine(configure())
    assert {"board", "cores", "system", "python", "load_1min", "profile", "engines"} == told.keys()
    assert usual_size(load_config("cpu", environment={})) == (1280, 720)
    assert usual_size(load_config("rpi5", environment={})) == (960, 540)
    wide = load_config("cpu", overrides=["video.width=640"], environment={})
    assert usual_size(wide) == (640, 360)
