"""Recordings back to pictures: same count, same size, lossless; damage survived and counted; bad input refused."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, ConfigError, DecoderError, FormatError, SourceError
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.media import read_video
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.sei import SEMANTIC_UUID, insert_sei
from scene_edge.server.cli import decode, serve
from scene_edge.server.config import FusionConfig
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.recording import DecodeReport, decode_clip, decode_recording, recorded_frames
from tests.server.camera import DARKER, GOP, HEIGHT, PERIOD_NS, WIDTH, FakeCamera, picture


@dataclass
class Recording:
    """What `decode_clip` takes."""

    access_units: list[AccessUnit]
    packets: list[SemanticPacket]


@pytest.fixture
def settings(bundle: Bundle) -> FusionConfig:
    return FusionConfig(bundles=(str(bundle.path),), engines=("onnx",), precision="fp32", threads=1)


def write_recording(path: Path, camera: FakeCamera) -> None:
    """Matroska as the camera writes it: each GOP's packets as SEI in its first access unit."""
    units = list(camera.units)
    for packet in camera.packets:
        first = packet.first_seq // GOP * GOP
        units[first] = replace(units[first], data=insert_sei(units[first].data, packet.to_bytes(), SEMANTIC_UUID))
    with av.open(io.BytesIO(b"".join(unit.data for unit in units)), format="h264") as template:
        container = av.open(str(path), "w", format="matroska")
        stream = container.add_stream_from_template(template.streams.video[0])
    for unit in units:
        packet_out = av.Packet(unit.data)
        packet_out.stream, packet_out.is_keyframe = stream, unit.keyframe
        packet_out.time_base = stream.time_base
        packet_out.pts = packet_out.dts = round(unit.frame_seq * PERIOD_NS / 1e9 / stream.time_base)
        container.mux(packet_out)
    container.close()


def test_a_recording_becomes_its_fused_video(tmp_path: Path, bundle: Bundle, settings: FusionConfig) -> None:
    camera = FakeCamera(bundle, frames=3 * GOP)
    write_recording(tmp_path / "in.mkv", camera)
    done: list[int] = []
    report = decode_recording(tmp_path / "in.mkv", tmp_path / "out.mkv", config=settings, progress=done.append)
    assert (report.frames, report.fused, report.packets) == (3 * GOP, 3 * GOP, 3)
    assert (report.width, report.height, report.faults) == (WIDTH, HEIGHT, {})
    assert done == list(range(1, 3 * GOP + 1))
    assert recorded_frames(tmp_path / "in.mkv") == 3 * GOP
    written = [planes for planes, _ in read_video(tmp_path / "out.mkv")]
    direct = decode_clip(Recording(camera.units, camera.packets), config=settings)
    assert len(written) == len(direct) == 3 * GOP
    assert all(np.array_equal(a.y, b.y) and np.array_equal(a.v, b.v) for a, b in zip(written, direct, strict=True))
    shift = float(camera.latents[0].mean()) * DARKER
    assert abs(float(picture(0).y.mean()) - shift - float(written[0].y.mean())) < 2.5


def test_lossy_is_the_plain_h264(tmp_path: Path, bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=2 * GOP)
    write_recording(tmp_path / "in.mkv", camera)
    report = decode_recording(tmp_path / "in.mkv", tmp_path / "out.mkv", lossy=True)
    assert (report.frames, report.fused) == (2 * GOP, 0)
    plain = [planes for planes, _ in read_video(tmp_path / "in.mkv")]
    written = [planes for planes, _ in read_video(tmp_path / "out.mkv")]
    assert all(np.array_equal(a.y, b.y) for a, b in zip(plain, written, strict=True))


def test_times_are_kept(tmp_path: Path, bundle: Bundle) -> None:
    write_recording(tmp_path / "in.mkv", FakeCamera(bundle, frames=GOP))
    decode_recording(tmp_path / "in.mkv", tmp_path / "out.mkv", lossy=True)
    times = [[t for _, t in read_video(tmp_path / name)] for name in ("in.mkv", "out.mkv")]
    assert times[0] == pytest.approx(times[1], abs=0.002)


def test_without_packets_it_is_the_plain_video_and_says_so(tmp_path: Path) -> None:
    write_recording(tmp_path / "in.mkv", FakeCamera(None, frames=GOP))
    report = decode_recording(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert report.frames == GOP
    assert "no semantic packets" in report.notes[0]


def test_damage_costs_pictures_and_not_the_rest(bundle: Bundle, settings: FusionConfig) -> None:
    camera = FakeCamera(bundle, frames=3 * GOP)
    units = list(camera.units)
    units[GOP] = replace(units[GOP], data=b"\x00\x00\x00\x01\x65" + b"\xff" * 50)
    broken = replace(camera.packets[2], body=camera.packets[2].body[:-2])
    report = DecodeReport()
    frames = decode_clip(Recording(units, [camera.packets[0], broken]), config=settings, report=report)
    assert len(frames) == 3 * GOP
    assert report.faults["video_damaged"] >= 1
    assert report.faults["semantic_damaged"] == 1


def test_nothing_that_decodes_is_an_error(settings: FusionConfig) -> None:
    with pytest.raises(DecoderError, match="no frame"):
        decode_clip(Recording([AccessUnit(b"\x00\x00\x01\x65abc", 0, 0, True)], []), config=settings)


def test_a_decoder_that_is_open_is_used_and_stays_open(bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=GOP)
    clip = Recording(camera.units, camera.packets)
    with_own = FusionDecoder(bundle, WIDTH, HEIGHT, prefer=("onnx",), precision="fp32", threads=1)
    first = decode_clip(clip, decoder=with_own)
    second = decode_clip(clip, decoder=with_own)
    assert all(np.array_equal(a.y, b.y) for a, b in zip(first, second, strict=True))


def test_bad_input(tmp_path: Path, bundle: Bundle) -> None:
    good, out = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_recording(good, FakeCamera(bundle, frames=2 * GOP))
    (tmp_path / "text.mkv").write_text("no video")
    (tmp_path / "empty.mkv").write_bytes(b"")
    for name in ("missing.mkv", "text.mkv", "empty.mkv"):
        with pytest.raises(SourceError):
            decode_recording(tmp_path / name, out)
    with pytest.raises(ConfigError, match=r"\.mkv"):
        decode_recording(good, tmp_path / "out.mp4")
    with pytest.raises(ConfigError, match="no such folder"):
        decode_recording(good, tmp_path / "none" / "out.mkv")
    with pytest.raises(BundleError, match="does not have"):
        decode_recording(good, out, config=FusionConfig())
    assert not list(tmp_path.glob(".*.part")), "an unfinished file is removed"
    assert not out.exists()
    good_bytes = good.read_bytes()
    with pytest.raises(ConfigError, match="same file"):
        decode_recording(good, good)
    assert good.read_bytes() == good_bytes


def test_a_truncated_recording_gives_what_there_is(tmp_path: Path, bundle: Bundle, settings: FusionConfig) -> None:
    path = tmp_path / "in.mkv"
    write_recording(path, FakeCamera(bundle, frames=4 * GOP))
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        try:
            report = decode_recording(path, tmp_path / "out.mkv", config=settings)
        except (SourceError, DecoderError, FormatError):
            continue
        assert 0 < report.frames < 4 * GOP
        assert len(list(read_video(tmp_path / "out.mkv"))) == report.frames


def test_on_the_command_line(tmp_path: Path, bundle: Bundle) -> None:
    app = typer.Typer()
    app.command()(serve)
    app.command()(decode)
    write_recording(tmp_path / "in.mkv", FakeCamera(None, frames=GOP))
    paths = [str(tmp_path / "in.mkv"), str(tmp_path / "out.mkv")]
    ran = CliRunner().invoke(app, ["decode", *paths, "--lossy", "--json", str(tmp_path / "report.json")])
    assert ran.exit_code == 0, ran.output
    assert f"{GOP} frames" in ran.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["frames"], report["width"], report["height"]) == (GOP, WIDTH, HEIGHT)
    for command in ("serve", "decode"):
        assert "Example" in CliRunner().invoke(app, [command, "--help"]).output
    failed = CliRunner().invoke(app, ["decode", paths[0], str(tmp_path / "out.avi")])
    assert isinstance(failed.exception, ConfigError)
